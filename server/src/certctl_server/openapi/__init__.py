"""The OpenAPI document, made from what the routes declare.

A handler says in ``opt``, beside ``roles`` and ``query``: ``body``, the Struct that ``new`` reads; ``change``, the one
that ``changes`` reads; ``list`` or ``answer``, the ListSpec whose rows or whose one object it returns; ``filters``, the
ListSpec whose filters it takes without being a list; ``codes``, further codes of success with the same answer;
``others``, those with another one; ``errors``, what it refuses with beside the usual; ``media``, what it answers in if
not in JSON, or a list of that; ``hidden``, that it is no part of the API. What it returns otherwise is its return type:
a TypedDict, or a list of one.
"""
