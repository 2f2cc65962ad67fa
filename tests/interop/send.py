"""Sends every file that the PyPI packages pydicom and pydicom-data carry, each in its own transfer
syntax, by C-STORE with pynetdicom; the data set's bytes go as they are in the file.

    send.py HOST PORT CALLED_AE OUT ROUND

Many of the files are one image in several transfer syntaxes under one SOP Instance UID, which no archive
may show twice. So they go in rounds, each to a node of its own: round N sends the N-th file, from 0, of
each UID. What is skipped is printed by round 0; a round in which nothing is left prints nothing.

Prints one JSON object a file: `{"file", "fate", ...}`. `sent` and `refused` were answered by the node;
`skipped` is no storable instance, with the reason. The data set's bytes of each file that was sent are
written to OUT/<n>, for the comparison with what comes back.
"""

import io
import json
import sys
import time
import warnings
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_files
from pydicom.filereader import read_preamble
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE

warnings.simplefilter("ignore")

# A directory of files is no instance, and not sent by C-STORE (PS3.4 annex B; PS3.3 annex F).
MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"


def take_apart(path):
    """The file's identifiers and the bytes after group 0002; a `ValueError` says why it is no instance."""
    if not Path(path).is_file():
        raise ValueError("a folder")
    raw = Path(path).read_bytes()
    stream = io.BytesIO(raw)
    if len(raw) < 132 or raw[128:132] != b"DICM":
        raise ValueError("no Part 10 file")
    read_preamble(stream, False)
    try:
        meta = pydicom.filereader._read_file_meta_info(stream)
    except Exception as error:
        raise ValueError(f"unreadable meta information: {error}") from error
    syntax = meta.get("TransferSyntaxUID")
    if not syntax:
        raise ValueError("no transfer syntax")
    dataset = raw[stream.tell():]
    try:
        read = pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:
        raise ValueError(f"pydicom cannot read it: {type(error).__name__}") from error
    uids = {name: str(read.get(name, "")) for name in
            ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")}
    if uids["SOPClassUID"] == MEDIA_STORAGE_DIRECTORY or str(meta.get("MediaStorageSOPClassUID", "")) == MEDIA_STORAGE_DIRECTORY:
        raise ValueError("a DICOMDIR")
    for name, uid in uids.items():
        if not uid or not UID(uid).is_valid:
            raise ValueError(f"no valid {name}")
    return uids, str(syntax), dataset


def send(host, port, called, uids, syntax, dataset):
    """The status of a C-STORE over an association of its own; `None` when there was no answer."""
    ae = AE(ae_title="PYNETDICOM")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
    ae.add_requested_context(uids["SOPClassUID"], syntax)
    association = ae.associate(host, port, ae_title=called)
    if not association.is_established:
        return None, "no association"
    try:
        if not association.accepted_contexts:
            return None, "no presentation context was accepted"
        context = association.accepted_contexts[0]
        if str(context.transfer_syntax[0]) != syntax:
            return None, "another transfer syntax was accepted"
        request = C_STORE()
        request.MessageID = 1
        request.AffectedSOPClassUID = uids["SOPClassUID"]
        request.AffectedSOPInstanceUID = uids["SOPInstanceUID"]
        request.Priority = 2
        request.DataSet = io.BytesIO(dataset)
        # As `Association.send_c_store` does, which would encode the data set anew.
        association._reactor_checkpoint.clear()
        while not association._is_paused:
            time.sleep(0.001)
        association.dimse.send_msg(request, context.context_id)
        _, answer = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        if answer is None:
            return None, "no answer"
        return answer.Status, str(answer.ErrorComment or "")
    finally:
        association.release()


def main():
    host, port, called, out, wanted = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5])
    out.mkdir(parents=True, exist_ok=True)
    rounds, known = {}, set()
    for n, path in enumerate(sorted(set(get_testdata_files()))):
        line = {"file": str(Path(path).name)}
        try:
            uids, syntax, dataset = take_apart(path)
        except ValueError as error:
            if wanted == 0:
                print(json.dumps({**line, "fate": "skipped", "why": str(error)}), flush=True)
            continue
        # The packages carry some files twice.
        if (syntax, dataset) in known:
            continue
        known.add((syntax, dataset))
        turn = rounds.get(uids["SOPInstanceUID"], 0)
        rounds[uids["SOPInstanceUID"]] = turn + 1
        if turn != wanted:
            continue
        status, comment = send(host, port, called, uids, syntax, dataset)
        fate = "sent" if status == 0 else "refused"
        if fate == "sent":
            (out / str(n)).write_bytes(dataset)
        line.update(fate=fate, status=status, comment=comment, number=n, syntax=syntax, length=len(dataset), **uids)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
