"""Programs of other libraries with ours in them; `make check` installs what they need."""
