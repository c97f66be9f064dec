"""Texts in few forwards, by several methods: on sources whose laws are enumerated, and on larger ones by samples."""
