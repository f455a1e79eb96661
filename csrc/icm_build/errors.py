"""The three ways in which a build can fail."""


class BuildError(RuntimeError):
    """The build cannot go on; the message is for the person who runs it."""


class CompileError(RuntimeError):
    """The compiler or the linker refused its input."""


class Unavailable(RuntimeError):
    """This library cannot be built on this machine; the install goes on without it."""
