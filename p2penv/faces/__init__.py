"""Adapters from the functional contract to the interfaces of learning libraries, one file each."""
