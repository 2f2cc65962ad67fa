"""Drives the Unified Procedure Step service (PS3.4 annex CC) of two sites of one mesh with pynetdicom, and
listens for its reports: what is asked and what must come back is the standard's, by software that is not ours.

    upsd.py service|after PORT DICOM_A URL_A DICOM_B URL_B

DICOM_A and DICOM_B are the sites' DICOM addresses, URL_A and URL_B their HTTP ones. The subscriber WATCHER
listens at PORT. `after` is run once site A is gone. Prints one line a check; the first that fails ends it.
"""

import sys
import threading
import time

import pydicom
import requests
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    CTImageStorage, UnifiedProcedureStepEvent as EVENT, UnifiedProcedureStepPull as PULL,
    UnifiedProcedureStepPush as PUSH, UnifiedProcedureStepQuery as QUERY, UnifiedProcedureStepWatch as WATCH,
    Verification)

from workitems import done, item, workitem

PART, PORT = sys.argv[1], int(sys.argv[2])
A, URL_A, B, URL_B = sys.argv[3:7]
GLOBAL = "1.2.840.10008.5.1.4.34.5"
FILTERED = "1.2.840.10008.5.1.4.34.5.1"
DEADLINE = 60

pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
pydicom.config.settings.writing_validation_mode = pydicom.config.RAISE


def step(label, **changes):
    return workitem(label, **{"SpecificCharacterSet": "ISO_IR 100", **changes})


class Peer:
    """An association of a standard application with a site."""

    def __init__(self, address, title="WORKSTATION1", syntax=ExplicitVRLittleEndian):
        host, port = address.rsplit(":", 1)
        ae = AE(ae_title=title)
        ae.acse_timeout = ae.dimse_timeout = DEADLINE
        # One association is silent while the other is at work.
        ae.network_timeout = None
        for uid in (PUSH, WATCH, PULL, QUERY, EVENT, Verification, CTImageStorage):
            ae.add_requested_context(uid, [syntax])
        self.assoc = ae.associate(host, int(port), ae_title="MAILLAGE")
        assert self.assoc.is_established, "no association"
        accepted = {context.abstract_syntax for context in self.assoc.accepted_contexts}
        assert accepted == {PUSH, WATCH, PULL, QUERY, Verification, CTImageStorage}, accepted

    def create(self, dataset, expected=0x0000, uid=None):
        uid = uid or generate_uid()
        status, _ = self.assoc.send_n_create(dataset, PUSH, uid)
        check(status, expected)
        return uid

    def act(self, uid, action, information, expected=0x0000, context=PULL, classed=PUSH):
        status, _ = self.assoc.send_n_action(information, action, classed, uid, meta_uid=context)
        return check(status, expected)

    def change(self, uid, state, transaction, expected=0x0000):
        information = item(ProcedureStepState=state)
        if transaction:
            information.TransactionUID = transaction
        return self.act(uid, 1, information, expected)

    def set(self, uid, dataset, expected=0x0000):
        status, _ = self.assoc.send_n_set(dataset, PUSH, uid, meta_uid=PULL)
        check(status, expected)

    def get(self, uid, expected=0x0000, tags=(), context=PULL):
        status, dataset = self.assoc.send_n_get(list(tags), PUSH, uid, meta_uid=context)
        check(status, expected)
        return dataset

    def find(self, identifier, expected=0x0000, model=PULL):
        found = []
        for status, dataset in self.assoc.send_c_find(identifier, model):
            if status.Status in (0xFF00, 0xFF01):
                found.append(dataset)
            else:
                check(status, expected)
        return found


def check(status, expected):
    given = status.get("Status")
    assert given == expected, f"{given and hex(given)} {status.get('ErrorComment')!r}, not {hex(expected)}"
    return status


def until(what, why):
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if (found := what()):
            return found
        time.sleep(0.1)
    raise AssertionError(why)


class Watcher:
    """A subscriber that is told of events."""

    def __init__(self):
        self.reports, self.lock, self.server = [], threading.Lock(), None

    def start(self):
        ae = AE(ae_title="WATCHER")
        ae.add_supported_context(EVENT, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        handlers = [(evt.EVT_N_EVENT_REPORT, self.told)]
        self.server = ae.start_server(("127.0.0.1", PORT), block=False, evt_handlers=handlers)
        return self

    def stop(self):
        self.server.shutdown()

    def told(self, event):
        information = event.event_information
        with self.lock:
            self.reports.append((event.request.AffectedSOPInstanceUID, event.event_type, information))
        assert event.request.AffectedSOPClassUID == PUSH
        return 0x0000, None

    def of(self, uid):
        with self.lock:
            return [(kind, information) for told, kind, information in self.reports if told == uid]

    def states(self, uid):
        return [information.ProcedureStepState for kind, information in self.of(uid) if kind == 1]


def creating(a, b):
    uid = a.create(step("Read one", accession="D1"))
    a.create(step("Again"), 0x0111, uid)
    b.create(step("Again"), 0x0111, uid)
    for missing in ("ScheduledProcedureStepPriority", "ProcedureStepLabel", "InputReadinessState"):
        a.create(step("x", **{missing: None}), 0x0120)
    empty = step("x")
    empty.ProcedureStepLabel = ""
    a.create(empty, 0x0121)
    a.create(step("x", ProcedureStepState="IN PROGRESS"), 0xC309)
    a.create(step("x", TransactionUID=generate_uid()), 0x0106)
    a.create(step("x", ScheduledProcedureStepPriority="STAT"), 0x0106)
    a.create(step("Less", WorklistLabel=None, AdmissionID=None), 0xB300)
    done("N-CREATE")


def finding(a, b):
    uids = {a.create(step("Find", patient="DFIND", accession=f"F{n}")) for n in range(3)}
    asked = item(PatientID="DFIND", SOPInstanceUID="", ProcedureStepState="", ProcedureStepLabel="", PatientName="",
                 ReferencedRequestSequence=[item(AccessionNumber="")])
    for model in (PULL, WATCH, QUERY):
        found = b.find(asked, model=model)
        assert {dataset.SOPInstanceUID for dataset in found} == uids, model
    assert all(str(dataset.PatientName) == "Doe^Jané" and dataset.ProcedureStepState == "SCHEDULED" for dataset in found)
    assert all("WorklistLabel" not in dataset for dataset in found), "only what was asked for"
    asked.ReferencedRequestSequence = [item(AccessionNumber="F2")]
    [one] = a.find(asked)
    assert one.ReferencedRequestSequence[0].AccessionNumber == "F2"
    some = item(PatientID="DF*", SOPInstanceUID="", ScheduledProcedureStepStartDateTime="20261124-20261125",
                ScheduledWorkitemCodeSequence=[item(CodeValue="110005", CodingSchemeDesignator="DCM")])
    assert len(b.find(some)) == 3
    assert b.find(item(PatientID="NOBODY", SOPInstanceUID="")) == []
    done("C-FIND")


def getting(a, b):
    uid = a.create(step("Get", accession="G1"))
    for peer in (a, b):
        dataset = peer.get(uid)
        assert (dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.ProcedureStepLabel) == (PUSH, uid, "Get")
        assert str(dataset.PatientName) == "Doe^Jané" and "TransactionUID" not in dataset
    part = b.get(uid, tags=[0x00741000, 0x00741204], context=WATCH)
    assert {element.keyword for element in part} == {"SpecificCharacterSet", "ProcedureStepState", "ProcedureStepLabel"}
    b.get(uid, 0x0001, tags=[0x00741000, 0x00081195])
    b.get(generate_uid(), 0xC307)
    done("N-GET")


def setting_and_claiming(a, b):
    uid, transaction = a.create(step("Claim", accession="C1")), generate_uid()
    a.set(uid, item(ProcedureStepLabel="Set"))
    assert b.get(uid).ProcedureStepLabel == "Set"
    a.set(uid, item(ProcedureStepState="COMPLETED"), 0x0106)
    a.set(uid, item(PatientID="P2"), 0x0106)
    a.set(uid, item(InputReadinessState="READY"), 0x0001)
    a.set(uid, item(ProcedureStepLabel="x", TransactionUID=generate_uid()), 0xC310)
    a.set(generate_uid(), item(ProcedureStepLabel="x"), 0xC307)
    a.change(uid, "COMPLETED", transaction, 0xC310)
    a.change(uid, "SCHEDULED", transaction, 0xC303)
    a.change(uid, "IN PROGRESS", None, 0xC301)
    a.change(generate_uid(), "IN PROGRESS", transaction, 0xC307)
    a.change(uid, "IN PROGRESS", transaction)
    b.change(uid, "IN PROGRESS", generate_uid(), 0xC301)
    b.change(uid, "IN PROGRESS", transaction, 0xC302)
    b.change(uid, "COMPLETED", generate_uid(), 0xC301)
    b.change(uid, "COMPLETED", transaction, 0xC304)
    a.set(uid, item(ProcedureStepLabel="x"), 0xC301)
    a.set(uid, item(ProcedureStepLabel="x", TransactionUID=generate_uid()), 0xC301)
    progress = [item(ProcedureStepProgress="40")]
    b.set(uid, item(ProcedureStepProgressInformationSequence=progress, TransactionUID=transaction))
    seen = a.get(uid)
    assert seen.ProcedureStepProgressInformationSequence[0].ProcedureStepProgress == 40
    performed = seen.UnifiedProcedureStepPerformedProcedureSequence[0]
    assert performed.ActualHumanPerformersSequence[0].HumanPerformerCodeSequence[0].CodeValue == "WORKSTATION1"
    # The other interface, at the other site, has the same step and knows who performs it.
    there = requests.get(f"{URL_B}/dicom-web/workitems/{uid}", headers={"Accept": "application/dicom+json"},
                         timeout=DEADLINE)
    assert Dataset.from_json(there.json()[0]).ProcedureStepState == "IN PROGRESS"
    claim = item(ProcedureStepState="IN PROGRESS", TransactionUID=generate_uid())
    refused = requests.put(f"{URL_B}/dicom-web/workitems/{uid}/state", data=claim.to_json(),
                           headers={"Content-Type": "application/dicom+json"}, timeout=DEADLINE)
    assert refused.status_code == 409, refused.text
    b.change(uid, "CANCELED", transaction)
    a.change(uid, "CANCELED", transaction, 0xB304)
    a.change(uid, "IN PROGRESS", transaction, 0xC300)
    a.set(uid, item(ProcedureStepLabel="x", TransactionUID=transaction), 0xC300)
    ended = a.get(uid).ProcedureStepProgressInformationSequence[0]
    assert ended.ProcedureStepCancellationDateTime and ended.ProcedureStepDiscontinuationReasonCodeSequence
    done("N-SET and N-ACTION: one performer, whoever asks and where")


def completing(a, b):
    uid, transaction = b.create(step("Complete", accession="K1")), generate_uid()
    b.change(uid, "IN PROGRESS", transaction)
    # A performer may say what it did; what it leaves out of a final state's needs is there all the same.
    station = item(CodeValue="WS7", CodingSchemeDesignator="99X", CodeMeaning="Workstation 7")
    performed = [item(PerformedStationNameCodeSequence=[station])]
    b.set(uid, item(UnifiedProcedureStepPerformedProcedureSequence=performed, TransactionUID=transaction))
    exams = requests.get(f"{URL_B}/api/v1/exams", params={"accession": "K1", "fresh": "true"},
                         timeout=DEADLINE).json()["exams"]
    [exam] = exams
    report = {"user": "WORKSTATION1", "token": transaction, "text": "Nothing to see."}
    answer = requests.post(f"{URL_B}/api/v1/exams/{exam['id']}/report", json=report, timeout=DEADLINE)
    assert answer.status_code == 200, answer.text
    a.change(uid, "COMPLETED", transaction, 0xB306)
    a.change(uid, "COMPLETED", generate_uid(), 0xC301)
    final = a.get(uid)
    assert final.ProcedureStepState == "COMPLETED"
    [said] = final.UnifiedProcedureStepPerformedProcedureSequence
    assert said.PerformedStationNameCodeSequence[0].CodeValue == "WS7"
    assert said.PerformedWorkitemCodeSequence[0].CodeValue == "110005"
    assert said.PerformedProcedureStepStartDateTime <= said.PerformedProcedureStepEndDateTime
    assert "OutputInformationSequence" in said and len(said.ActualHumanPerformersSequence) == 1
    a.act(uid, 2, None, 0xC311, context=WATCH)
    done("completed by its report, with all that a final state needs")


def cancelling(a, b):
    uid = a.create(step("Cancel"))
    a.act(uid, 2, item(ReasonForCancellation="not needed"), context=PUSH)
    assert b.get(uid).ProcedureStepState == "CANCELED"
    b.act(uid, 2, None, 0xB304, context=WATCH)
    b.act(generate_uid(), 2, None, 0xC307, context=WATCH)
    done("request to cancel")


def each_class_has_its_own_operations(a):
    uid = a.create(step("Classes"))
    a.act(uid, 1, item(ProcedureStepState="IN PROGRESS", TransactionUID=generate_uid()), 0x0123, context=WATCH)
    a.act(uid, 3, item(ReceivingAE="WATCHER", DeletionLock="FALSE"), 0x0123, context=PULL)
    a.act(uid, 9, None, 0x0123)
    a.act(uid, 5, item(ReceivingAE="WATCHER"), 0xC314, context=WATCH)
    a.act(GLOBAL, 1, item(ProcedureStepState="IN PROGRESS", TransactionUID=generate_uid()), 0xC314)
    status, _ = a.assoc.send_n_set(item(ProcedureStepLabel="x"), PUSH, uid)
    check(status, 0x0211)
    assert a.find(item(SOPInstanceUID=""), 0x0211, model=PUSH) == []
    assert a.assoc.send_c_echo().Status == 0x0000
    done("each SOP class has its own operations, and the association goes on")


def subscribing(a, b):
    a.act(GLOBAL, 3, item(ReceivingAE="STRANGER", DeletionLock="FALSE"), 0xC308, context=WATCH)
    a.act(generate_uid(), 3, item(ReceivingAE="WATCHER", DeletionLock="FALSE"), 0xC307, context=WATCH)
    a.act(GLOBAL, 4, item(ReceivingAE="WATCHER"), 0xC307, context=WATCH)
    a.act(GLOBAL, 3, item(ReceivingAE="WATCHER", DeletionLock="FALSE"), context=WATCH)
    a.act(GLOBAL, 3, item(ReceivingAE="WATCHER", DeletionLock="TRUE"), 0xB301, context=WATCH)
    # Nobody listens yet: what happens meanwhile is told later, all of it and in order.
    uid, transaction = b.create(step("Watched", patient="PW")), generate_uid()
    b.change(uid, "IN PROGRESS", transaction)
    b.set(uid, item(ProcedureStepProgressInformationSequence=[item(ProcedureStepProgress="50")],
                    TransactionUID=transaction))
    a.act(uid, 2, item(ReasonForCancellation="please"), context=WATCH)
    watcher = Watcher().start()
    b.change(uid, "CANCELED", transaction)
    until(lambda: "CANCELED" in watcher.states(uid), f"told {watcher.reports}")
    once = []
    for kind, information in watcher.of(uid):
        if information.UID not in [event for event, *_ in once]:
            once.append((information.UID, kind, information))
    states = [information.ProcedureStepState for _, kind, information in once if kind == 1]
    assert states == ["SCHEDULED", "IN PROGRESS", "CANCELED"], states
    kinds = [kind for _, kind, _ in once]
    assert {1, 2, 3, 5} == set(kinds), kinds
    [asked] = [information for _, kind, information in once if kind == 2]
    assert (asked.RequestingAE, asked.ReasonForCancellation) == ("WORKSTATION1", "please")
    a.act(GLOBAL, 5, item(ReceivingAE="WATCHER"), context=WATCH)
    later = b.create(step("Later", patient="PL"))
    a.act(later, 3, item(ReceivingAE="WATCHER", DeletionLock="FALSE"), context=WATCH)
    until(lambda: watcher.states(later) == ["SCHEDULED"], "the state in which it is when it is subscribed to")
    a.act(GLOBAL, 4, item(ReceivingAE="WATCHER"), context=WATCH)
    a.act(GLOBAL, 3, item(ReceivingAE="WATCHER", DeletionLock="FALSE"), context=WATCH)
    watcher.stop()
    done("subscribed, and told of everything though it did not listen at first")


def after():
    watcher = Watcher().start()
    b = Peer(B)
    uid = b.create(step("After", patient="PA"))
    until(lambda: "SCHEDULED" in watcher.states(uid), f"told {watcher.reports}")
    watcher.stop()
    done("told by another site")


def main():
    if PART == "after":
        return after()
    a, b = Peer(A), Peer(B, syntax=ImplicitVRLittleEndian)
    creating(a, b)
    finding(a, b)
    getting(a, b)
    setting_and_claiming(a, b)
    completing(a, b)
    cancelling(a, b)
    each_class_has_its_own_operations(a)
    subscribing(a, b)
    for peer in (a, b):
        peer.assoc.release()
    assert a.assoc.is_released and b.assoc.is_released
    done("released")


main()
