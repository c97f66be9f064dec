"""Functions with hand-written gradients or CPU kernels, each beside the plain form that it must equal (tests compare).

The reading path is `hybrid/model`, in plain formulae; these only make it fast.
"""
