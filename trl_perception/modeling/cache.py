"""The cache of keys and values, under the name that the installed transformers gives it."""

from dataclasses import fields

from transformers.modeling_outputs import BaseModelOutputWithPast

# Argument of forward and generate, and field of their outputs: `cache` since transformers 5.24, which keeps the older name
# as a deprecated alias.
CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
