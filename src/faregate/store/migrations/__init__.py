"""How the schema became what it is: one revision for each of its versions, numbered alike, each with its way back.

A revision spells out what it makes by itself: `tables` says what the schema is now, which is not what it was then.
"""
