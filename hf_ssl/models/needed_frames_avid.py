# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Faster decoding of H.264: skip frames that are neither wanted nor used as references.

This file ships inside model repositories.
"""

import math

import numpy as np


_AHEAD = 2**26  # maximum bytes of packets read before decoding


def needed_frames(av, container, stream, times: list[float]) -> list | None:
    """The frames on display at increasing `times`, or None if only full decoding can tell.

    That is, if the stream is not H.264, is broken, or its time stamps do not determine the frames on display.
    """
    context, base = stream.codec_context, stream.time_base
    if context.name != "h264":
        return None
    begin, last = float((stream.start_time or 0) * base), math.ceil((times[-1] + 1e-6) / base)
    container.seek(math.floor(max(times[0], begin) / base), stream=stream)
    packets, stamps, size, whole = [], [], 0, False
    try:
        for packet in container.demux(stream):
            pts, dts = packet.pts, packet.dts
            if packet.size == 0:  # end of file
                whole = True
                break
            size += packet.size
            if pts is None or dts is None or packet.is_corrupt or packet.is_discard or size > _AHEAD:
                return None
            if dts > last:  # all later time stamps are greater, too
                break
            packets.append(packet)
            stamps.append(pts)
        seconds = np.array(sorted(stamps), float) * base.numerator / base.denominator
        at = np.searchsorted(seconds, np.array(times) + 1e-6, side="right") - 1
        if len(set(stamps)) < len(stamps) or not len(at) or at[0] < 0 or whole and times[-1] > seconds[-1] + 1:
            return None
        stamps.sort()
        wanted = [stamps[i] for i in at]
        missing, found = set(wanted), {}
        for packet in packets:
            needed = packet.pts in missing
            context.skip_frame = "DEFAULT" if needed else "NONREF"
            for frame in packet.decode():
                found[frame.pts] = frame
            if needed:
                missing.remove(packet.pts)
                if not missing:
                    break
        for frame in context.decode(None):  # flush frames held for reordering
            found[frame.pts] = frame
    except av.error.FFmpegError:
        return None
    finally:
        context.skip_frame = "DEFAULT"
    if any(stamp not in found or found[stamp].interlaced_frame or found[stamp].is_corrupt for stamp in wanted):
        return None
    return [found[stamp] for stamp in wanted]
