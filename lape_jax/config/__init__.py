"""How a config is made, read, overridden and checked.

schema.py    the keys that every task has
reading.py   arguments of config files, options, JSON
validate.py  what makes a config one that a run can start from
rules.py     what values may be, and how to say so

Tasks add their keys, and `lape_jax.tasks.config` puts everything together.
"""
