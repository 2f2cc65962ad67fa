"""JPEG-LS and HTJ2K by imagecodecs: pixels from a file, one line for each codec on standard output.

usage: peers.py PIXELS SAMPLE_BYTES BIG_ENDIAN COMPONENTS COLUMNS BYTES_A_ROUND ROUNDS
"""

import sys
import time

import imagecodecs
import numpy

file, width, big, components, columns, bytes_a_round, rounds = sys.argv[1], *map(int, sys.argv[2:])
samples = numpy.fromfile(file, dtype=numpy.dtype(f"{'>' if big else '<'}u{width}"))
samples = samples.astype(numpy.dtype(f"=u{width}"))
row = columns * components
samples = samples[: len(samples) // row * row]
image = samples.reshape((-1, columns, components) if components > 1 else (-1, columns))
if width == 2 and int(image.max()) - int(image.min()) > int(numpy.ptp(image.view(numpy.int16).astype(numpy.int32))):
    # Signed: the peers take unsigned samples, so the least becomes zero.
    signed = image.view(numpy.int16).astype(numpy.int32)
    image = (signed - signed.min()).astype(numpy.uint16)

codecs = {
    "JPEG-LS": (lambda: imagecodecs.jpegls_encode(image), imagecodecs.jpegls_decode),
    "HTJ2K": (lambda: imagecodecs.htj2k_encode(image, reversible=True), imagecodecs.htj2k_decode),
}
times = -(-bytes_a_round // image.nbytes)
for name, (encode, decode) in codecs.items():
    try:
        coded = encode()
        whole = numpy.array_equal(decode(coded), image)
    except Exception as error:  # the peer's own: it is said, and the others go on
        print(name, "failed", type(error).__name__)
        continue
    if not whole:
        print(name, "failed", "not-lossless")
        continue
    figures = [image.nbytes / len(coded)]
    for work in (encode, lambda: decode(coded)):
        for _ in range(rounds):
            since = time.process_time()
            for _ in range(times):
                work()
            figures.append(times * image.nbytes / 1e6 / (time.process_time() - since))
    print(name, *figures)
