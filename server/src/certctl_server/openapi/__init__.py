"""The OpenAPI document, made from what the routes declare.

A handler says in ``opt``, beside ``roles`` and ``query``: ``body``, the Struct that ``new`` reads; ``change``, the one
that ``changes`` reads; ``list`` or ``answer``, the ListSpec whose rows or whose one object it returns; ``codes``,
further codes of success; ``media``, what it answers in if not in JSON; ``hidden``, that it is no part of the API.
What it returns otherwise is its return type: a TypedDict.
"""
