"""The sections of the card, one file each: a template and the function that computes its values from a report.

`card.SECTIONS` lists them. To add a section, write its file here and add its line there.
"""
