"""Server-sent events, decoded from bytes as they come: no I/O, and the same frames however the bytes are cut."""

from __future__ import annotations

from typing import NamedTuple

MAX_FRAME_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


class Frame(NamedTuple):
    """One event of a stream. event: its name, "" if it has none."""

    data: str
    event: str = ""


class SseDecoder:
    """Feed bytes, get frames. Line ends may be LF, CRLF or CR; comments are dropped; several `data:` lines are joined by LF.

    A frame larger than `max_bytes` sets `overflowed`; frames before it are still given, nothing after it.
    Bytes that are not UTF-8 become U+FFFD. A field `error:` counts as data of an event named `error` (older llama.cpp).
    """

    __slots__ = ("_data", "_event", "_held", "_held_bytes", "_max", "_size", "_skip_lf", "_started", "overflowed")

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max = max_bytes
        self._held: list[bytes] = []  # pieces of the unfinished line: joined once, so many small pieces stay linear
        self._held_bytes = 0
        self._data: list[bytes] = []
        self._size = 0
        self._event = ""
        self._skip_lf = False
        self._started = False
        self.overflowed = False

    def feed(self, data: bytes) -> list[Frame]:
        """Frames that these bytes complete, in order."""
        if self.overflowed or not data:
            return []
        if self._skip_lf:
            self._skip_lf = False
            if data[:1] == b"\n":  # the second half of a CRLF whose CR already ended the line
                data = data[1:]
        frames: list[Frame] = []
        lines = data.splitlines(keepends=True)
        last = lines.pop() if lines and lines[-1][-1] not in b"\r\n" else b""
        for line in lines:
            self._line(self._whole(line), frames)
            if self.overflowed:
                return frames
        if lines and not last:
            self._skip_lf = lines[-1].endswith(b"\r")
        if last:
            self._held.append(last)
            self._held_bytes += len(last)
            self.overflowed = self._size + self._held_bytes > self._max
        return frames

    def end(self) -> list[Frame]:
        """The stream is over: what a server left without its blank line still counts as a frame."""
        frames: list[Frame] = []
        if self._held:
            self._line(self._whole(b""), frames)
        self._line(b"", frames)
        return frames

    def _whole(self, line: bytes) -> bytes:
        if self._held:
            line = b"".join((*self._held, line))
            self._held.clear()
            self._held_bytes = 0
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        return line.rstrip(b"\r\n")

    def _line(self, line: bytes, frames: list[Frame]) -> None:
        if not line:
            if self._data:
                frames.append(Frame(b"\n".join(self._data).decode("utf-8", "replace"), self._event))
                self._data.clear()
            self._event, self._size = "", 0
            return
        if line.startswith(b":"):
            return
        self._size += len(line)
        if self._size > self._max:
            self.overflowed = True
            return
        name, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"error":
            self._event = "error"
            self._data.append(value)
