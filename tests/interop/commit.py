"""Asks for storage commitment as a modality does, with pynetdicom, and listens for the results.

    commit.py ask HOST PORT CALLED_AE CALLING_AE TRANSACTION WAIT SOP_CLASS SOP_INSTANCE...
    commit.py listen PORT AE

`ask` sends an N-ACTION and keeps the association for WAIT seconds, or until the N-EVENT-REPORT comes on it.
`listen` accepts associations for ever. Both print one JSON object a line: what was answered, and each
report: `{"event", "transaction", "committed", "failed", "on"}`.
"""

import json
import sys
import time

from pydicom.dataset import Dataset
from pynetdicom import AE, evt, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

reports = []


def say(**line):
    print(json.dumps(line), flush=True)


def on_report(event, where):
    information = event.event_information
    items = lambda name: list(information.get(name, None) or [])
    line = {
        "event": event.event_type,
        "transaction": str(information.TransactionUID),
        "committed": sorted(str(item.ReferencedSOPInstanceUID) for item in items("ReferencedSOPSequence")),
        "failed": {str(item.ReferencedSOPInstanceUID): item.FailureReason for item in items("FailedSOPSequence")},
        "on": where,
    }
    reports.append(line)
    say(**line)
    return 0x0000, None


def ask(host, port, called, calling, transaction, wait, sop_class, *instances):
    ae = AE(ae_title=calling)
    ae.add_requested_context(StorageCommitmentPushModel)
    handlers = [(evt.EVT_N_EVENT_REPORT, lambda event: on_report(event, "own"))]
    association = ae.associate(host, int(port), ae_title=called, evt_handlers=handlers)
    if not association.is_established:
        sys.exit("no association")
    request = Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = []
    for instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class
        item.ReferencedSOPInstanceUID = instance
        request.ReferencedSOPSequence.append(item)
    status, _ = association.send_n_action(
        request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    say(status=status.get("Status"))
    until = time.monotonic() + float(wait)
    while time.monotonic() < until and not reports and association.is_established:
        time.sleep(0.05)
    if association.is_established:
        association.release()


def listen(port, title):
    ae = AE(ae_title=title)
    # The user of the class accepts: whoever calls is its provider.
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    handlers = [(evt.EVT_N_EVENT_REPORT, lambda event: on_report(event, "new"))]
    ae.start_server(("127.0.0.1", int(port)), block=False, evt_handlers=handlers)
    say(listening=True)
    while True:
        time.sleep(3600)


{"ask": ask, "listen": listen}[sys.argv[1]](*sys.argv[2:])
