"""How many calls the queue server answers, beside other servers, and beside the same Lua called directly."""
