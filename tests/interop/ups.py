"""Drives the worklist service (UPS-RS, PS3.18 section 11) of two sites of one mesh with requests, pydicom
and websockets: what is asked and what must come back is the standard's, read by software that is not ours.

    ups.py URL_A URL_B [RACES]

URL_A and URL_B are the sites' addresses, such as http://127.0.0.1:8080. Prints one line a check; the first
that fails ends it.
"""

import asyncio
import json
import sys
import threading

import pydicom
import requests
import websockets
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from workitems import done, item, workitem

A, B = sys.argv[1], sys.argv[2]
RACES = int(sys.argv[3]) if len(sys.argv) > 3 else 25
JSON = "application/dicom+json"
PUSH = "1.2.840.10008.5.1.4.34.6.1"
GLOBAL = "1.2.840.10008.5.1.4.34.5"
FILTERED = "1.2.840.10008.5.1.4.34.5.1"
DEADLINE = 30

# Values that pydicom finds doubtful are failures here.
pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
pydicom.config.settings.writing_validation_mode = pydicom.config.RAISE


def service(site):
    return site + "/dicom-web"


def call(method, url, status, body=None, warning=None, **more):
    """The answer, which must have this status and, if given, a Warning with this text and no other."""
    headers = {"Accept": JSON, **more.pop("headers", {})}
    if body is not None and "Content-Type" not in headers:
        headers["Content-Type"] = JSON
    data = body if isinstance(body, (str, bytes, type(None))) else body.to_json()
    answer = requests.request(method, url, data=data, headers=headers, timeout=DEADLINE, **more)
    where = f"{method} {url}: {answer.status_code} {answer.text[:400]} {dict(answer.headers)}"
    assert answer.status_code == status, f"not {status}: {where}"
    given = answer.headers.get("Warning")
    if warning is not None:
        base = url.split("/dicom-web")[0] + "/dicom-web"
        assert given == f"299 {base}: {warning}", f"not {warning!r}: {where}"
    elif 200 <= status < 300:
        assert given is None, f"an unexpected warning: {where}"
    return answer


def create(site, label, **more):
    uid = generate_uid()
    answer = call("POST", f"{service(site)}/workitems?{uid}", 201, workitem(label, **more))
    assert answer.headers["Location"] == f"{service(site)}/workitems/{uid}"
    assert answer.content == b""
    return uid


def retrieve(site, uid):
    answer = call("GET", f"{service(site)}/workitems/{uid}", 200, headers={"Cache-Control": "no-cache"})
    assert answer.headers["Content-Type"] == JSON
    [dataset] = answer.json()
    dataset = Dataset.from_json(dataset)
    assert "TransactionUID" not in dataset, "the access lock is nobody else's to know"
    return dataset


def search(site, status=200, warning=None, **keys):
    answer = call("GET", f"{service(site)}/workitems", status, params=keys, warning=warning,
                  headers={"Cache-Control": "no-cache"})
    return [Dataset.from_json(dataset) for dataset in answer.json()] if status in (200, 206) else []


def change(site, uid, state, transaction, status=200, warning=None, aet=None):
    body = item(ProcedureStepState=state)
    if transaction is not None:
        body.TransactionUID = transaction
    place = f"state/{aet}" if aet else "state"
    answer = call("PUT", f"{service(site)}/workitems/{uid}/{place}", status, body, warning)
    assert status != 200 or answer.content == b"", "a success has no payload"
    return answer


def creating():
    base = service(A) + "/workitems"
    uid = create(A, "Read one", accession="ACC1")
    call("POST", f"{base}?{uid}", 409, workitem("Again"))
    call("POST", f"{base}?workitem={generate_uid()}", 201, workitem("By name"))
    named = workitem("In the body", SOPInstanceUID=generate_uid())
    call("POST", base, 201, named)
    call("POST", f"{base}?{generate_uid()}", 400, named)
    made = call("POST", base, 201, workitem("Unnamed")).headers["Location"].rsplit("/", 1)[1]
    assert UID(made).is_valid and retrieve(B, made).ProcedureStepLabel == "Unnamed"
    for missing in ("ScheduledProcedureStepPriority", "ProcedureStepLabel", "ScheduledProcedureStepStartDateTime",
                    "InputReadinessState", "ProcedureStepState"):
        call("POST", f"{base}?{generate_uid()}", 400, workitem("x", **{missing: None}))
    call("POST", f"{base}?{generate_uid()}", 400, workitem("x", ProcedureStepState="IN PROGRESS"))
    call("POST", f"{base}?{generate_uid()}", 400, workitem("x", TransactionUID=generate_uid()))
    call("POST", f"{base}?{generate_uid()}", 400, workitem("x", ScheduledProcedureStepPriority="STAT"))
    call("POST", f"{base}?no-uid", 400, workitem("x"))
    call("POST", f"{base}?{generate_uid()}", 400, b"{not json")
    call("POST", f"{base}?{generate_uid()}", 415, "<NativeDicomModel/>", headers={"Content-Type": "application/dicom+xml"})
    partial = workitem("Less", WorklistLabel=None, AdmissionID=None)
    call("POST", f"{base}?{generate_uid()}", 201, partial, "The Workitem was created with modifications.")
    call("POST", f"{base}?{generate_uid()}", 201, json.dumps([workitem("In an array").to_json_dict()]))
    done("create")


def retrieving():
    uid = create(A, "Read two", accession="ACC2")
    for site in (A, B):
        step = retrieve(site, uid)
        assert (step.SOPClassUID, step.SOPInstanceUID) == (PUSH, uid)
        assert (step.ProcedureStepState, step.InputReadinessState) == ("SCHEDULED", "READY")
        assert (step.ProcedureStepLabel, step.WorklistLabel) == ("Read two", "EMERGENCY")
        assert (str(step.PatientName), step.PatientID, step.PatientBirthDate) == ("Doe^Jané", "P1", "19700131")
        assert step.ScheduledProcedureStepPriority == "MEDIUM"
        assert step.ReferencedRequestSequence[0].AccessionNumber == "ACC2"
        assert step.ScheduledWorkitemCodeSequence[0].CodeMeaning == "Interpretation"
        assert len(step.UnifiedProcedureStepPerformedProcedureSequence) == 0
    call("GET", f"{service(A)}/workitems/{uid}", 406, headers={"Accept": "application/dicom+xml"})
    call("GET", f"{service(A)}/workitems/{generate_uid()}", 404)
    done("retrieve at both sites")


def searching():
    uids = {create(A, "Search", patient="PSEARCH", accession=f"S{n}") for n in range(5)}
    found = search(B, PatientID="PSEARCH")
    assert {step.SOPInstanceUID for step in found} == uids
    assert all("UnifiedProcedureStepPerformedProcedureSequence" not in step for step in found)
    one = next(iter(uids))
    for keys in ({"00080018": one}, {"SOPInstanceUID": one}, {"SOPInstanceUID": f"{one},1.2.3", "PatientID": "PS*"}):
        assert [step.SOPInstanceUID for step in search(A, **keys)] == [one], keys
    accession = {"ReferencedRequestSequence.AccessionNumber": "S3"}
    assert [step.ReferencedRequestSequence[0].AccessionNumber for step in search(A, **accession)] == ["S3"]
    state = {"ProcedureStepState": "SCHEDULED", "ScheduledProcedureStepPriority": "MEDIUM", "PatientName": "doe*",
             "ScheduledProcedureStepStartDateTime": "20261124-20261125", "PatientID": "PSEARCH"}
    assert len(search(A, **state)) == 5
    more = "There are additional results that can be requested."
    first = search(A, 206, more, PatientID="PSEARCH", limit=2)
    then = search(A, 206, more, PatientID="PSEARCH", limit=2, offset=2)
    last = search(A, PatientID="PSEARCH", limit=2, offset=4)
    assert {step.SOPInstanceUID for step in first + then + last} == uids, "pages are disjoint and complete"
    search(A, 204, PatientID="NOBODY")
    search(A, 400, Colour="blue")
    search(A, 400, PatientID="P1", limit="many")
    search(A, 200, "The fuzzymatching parameter is not supported. Only literal matching has been performed.",
           PatientID="PSEARCH", fuzzymatching="true")
    [full] = search(A, SOPInstanceUID=one, includefield="UnifiedProcedureStepPerformedProcedureSequence")
    assert "UnifiedProcedureStepPerformedProcedureSequence" in full
    call("GET", f"{service(A)}/workitems", 406, headers={"Accept": "application/dicom+xml"})
    done("search")


def updating():
    uid = create(A, "Update")
    url = f"{service(A)}/workitems/{uid}"
    call("POST", url, 200, item(ProcedureStepLabel="Updated", ScheduledProcedureStepPriority="LOW",
                                ScheduledStationNameCodeSequence=[item(
                                    CodeValue="WS1", CodingSchemeDesignator="99X", CodeMeaning="Workstation")]))
    step = retrieve(B, uid)
    assert (step.ProcedureStepLabel, step.ScheduledProcedureStepPriority) == ("Updated", "LOW")
    assert step.ScheduledStationNameCodeSequence[0].CodeValue == "WS1"
    exam = step.ReferencedRequestSequence[0].get("RequestedProcedureID")
    assert exam is None, "the client's own request is not rewritten"
    for fixed in (item(ProcedureStepState="COMPLETED"), item(PatientID="P2"), item(SOPInstanceUID=generate_uid())):
        call("POST", url, 400, fixed)
    call("POST", url, 400, item(ProcedureStepLabel=""))
    call("POST", url, 200, item(InputReadinessState="READY"), "Requested optional Attributes are not supported.")
    label = item(ProcedureStepLabel="Again")
    call("POST", f"{url}?{generate_uid()}", 409, label, "The target URI did not reference a claimed Workitem.")
    transaction = generate_uid()
    change(A, uid, "IN PROGRESS", transaction)
    call("POST", url, 400, label, "The Transaction UID is missing.")
    call("POST", f"{url}?{generate_uid()}", 400, label, "The Transaction UID is incorrect.")
    call("POST", f"{url}?{transaction}", 200, label)
    call("POST", f"{url}?transaction-uid={transaction}", 200, item(
        ProcedureStepProgressInformationSequence=[item(ProcedureStepProgress="40")]))
    call("POST", url, 200, item(ProcedureStepLabel="Old form", TransactionUID=transaction))
    step = retrieve(B, uid)
    assert step.ProcedureStepProgressInformationSequence[0].ProcedureStepProgress == 40
    assert step.ProcedureStepLabel == "Old form"
    change(A, uid, "CANCELED", transaction)
    call("POST", url, 400, label, "The submitted request is inconsistent with the current state of the Workitem.")
    call("POST", f"{service(A)}/workitems/{generate_uid()}", 404, label)
    done("update")


def changing():
    inconsistent = "The submitted request is inconsistent with the state of the UPS Instance."
    uid, transaction = create(A, "Change"), generate_uid()
    change(A, uid, "COMPLETED", transaction, 409, inconsistent)
    change(A, uid, "SCHEDULED", transaction, 400)
    change(A, uid, "IN PROGRESS", None, 400, "The Transaction UID is missing.")
    change(A, generate_uid(), "IN PROGRESS", transaction, 404)
    change(A, uid, "IN PROGRESS", transaction, aet="WORKSTATION1")
    step = retrieve(B, uid)
    assert step.ProcedureStepState == "IN PROGRESS"
    performed = step.UnifiedProcedureStepPerformedProcedureSequence[0]
    assert performed.ActualHumanPerformersSequence[0].HumanPerformerCodeSequence[0].CodeValue == "WORKSTATION1"
    change(B, uid, "IN PROGRESS", generate_uid(), 409, inconsistent)
    change(A, uid, "IN PROGRESS", transaction, 409, inconsistent)
    for state in ("COMPLETED", "CANCELED"):
        change(B, uid, state, generate_uid(), 400, "The Transaction UID is incorrect.")
    change(A, uid, "COMPLETED", transaction, 409, inconsistent)
    change(B, uid, "CANCELED", transaction)
    change(A, uid, "CANCELED", transaction, 200, "The UPS is already in the requested state of CANCELED.")
    change(A, uid, "CANCELED", generate_uid(), 400, "The Transaction UID is incorrect.")
    change(A, uid, "IN PROGRESS", generate_uid(), 409, inconsistent)
    step = retrieve(A, uid)
    assert step.ProcedureStepState == "CANCELED"
    assert step.ProcedureStepProgressInformationSequence[0].ReasonForCancellation
    replaced = {"ReplacedProcedureStepSequence.ReferencedSOPInstanceUID": uid}
    [replacement] = search(B, **replaced)
    assert replacement.ProcedureStepState == "SCHEDULED" and len(replacement.SOPInstanceUID) <= 64
    complete(replacement.SOPInstanceUID)
    done("change state")


def complete(uid):
    """Reads and reports a step; the report itself has no word in UPS."""
    transaction = generate_uid()
    change(A, uid, "IN PROGRESS", transaction, aet="DR-A")
    exam = retrieve(A, uid).ReferencedRequestSequence[0].RequestedProcedureID
    report = {"user": "DR-A", "token": generate_uid(), "text": "Nothing to see."}
    answer = requests.post(f"{A}/api/v1/exams/{exam}/report", json=report, timeout=DEADLINE)
    assert (answer.status_code, answer.json()["code"]) == (400, "wrong-transaction"), answer.text
    report["token"] = transaction
    answer = requests.post(f"{A}/api/v1/exams/{exam}/report", json=report, timeout=DEADLINE)
    assert answer.status_code == 200, answer.text
    change(B, uid, "COMPLETED", transaction, 200, "The UPS is already in the requested state of COMPLETED.")
    step = retrieve(B, uid)
    assert step.ProcedureStepState == "COMPLETED"
    performed = step.UnifiedProcedureStepPerformedProcedureSequence[0]
    assert performed.PerformedProcedureStepStartDateTime <= performed.PerformedProcedureStepEndDateTime
    call("POST", f"{service(A)}/workitems/{uid}/cancelrequest", 409, warning="The UPS is already COMPLETED.")
    done("completed by its report")


def racing():
    for n in range(RACES):
        uid = create(A, f"Race {n}")
        barrier, answers = threading.Barrier(2), {}

        def claim(site):
            body = item(ProcedureStepState="IN PROGRESS", TransactionUID=generate_uid())
            barrier.wait()
            answers[site] = requests.put(f"{service(site)}/workitems/{uid}/state", data=body.to_json(),
                                         headers={"Content-Type": JSON}, timeout=DEADLINE)

        threads = [threading.Thread(target=claim, args=(site,)) for site in (A, B)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(answer.status_code for answer in answers.values())
        assert statuses == [200, 409], f"race {n}: {statuses}"
        [loser] = [answer for answer in answers.values() if answer.status_code == 409]
        assert "inconsistent with the state of the UPS Instance" in loser.headers["Warning"]
    done(f"{RACES} races between two sites, each with one winner")


def cancelling():
    url = f"{service(A)}/workitems/{{}}/cancelrequest".format
    uid = create(A, "Cancel")
    call("POST", url(uid), 202, item(ReasonForCancellation="not needed", ContactDisplayName="Dr B"))
    step = retrieve(B, uid)
    assert step.ProcedureStepState == "CANCELED"
    assert "not needed" in step.ProcedureStepProgressInformationSequence[0].ReasonForCancellation
    call("POST", url(uid), 202, warning="The UPS is already in the requested state of CANCELED.")
    busy, transaction = create(A, "Cancel while performed"), generate_uid()
    change(A, busy, "IN PROGRESS", transaction)
    call("POST", url(busy) + "/REQUESTER", 202)
    assert retrieve(B, busy).ProcedureStepState == "IN PROGRESS", "its performer decides"
    call("POST", url(generate_uid()), 404)
    done("request cancellation")


def subscribing():
    def place(uid, aet, end=""):
        return f"{service(A)}/workitems/{uid}/subscribers/{aet}{end}"

    answer = call("POST", place(GLOBAL, "SUB1"), 201)
    assert answer.headers["Content-Location"] == service(A).replace("http", "ws", 1) + "/subscribers/SUB1"
    call("POST", place(GLOBAL, "SUB1") + "?deletionlock=true", 201, warning="Deletion Lock not granted.")
    call("POST", place(FILTERED, "SUB2"), 400)
    call("POST", place(FILTERED, "SUB2") + "?filter=Colour%3Dblue", 400)
    call("POST", place(FILTERED, "SUB2") + "?filter=WorklistLabel%3DEMERGENCY,PatientID%3DP7", 201)
    call("POST", place(generate_uid(), "SUB3"), 404)
    call("POST", place(GLOBAL, "AN-AE-TITLE-TOO-LONG"), 400)
    call("POST", place(GLOBAL, "SUB1", "/suspend"), 200)
    call("POST", place(GLOBAL, "SUB9", "/suspend"), 404)
    for uid, aet in ((GLOBAL, "SUB1"), (FILTERED, "SUB2")):
        call("DELETE", place(uid, aet), 200)
        call("DELETE", place(uid, aet), 404)
    done("subscribe, suspend, unsubscribe")


class Client:
    """A subscriber's WebSocket."""

    def __init__(self, site, aet, after=None):
        self.url = service(site).replace("http", "ws", 1) + f"/subscribers/{aet}" + (f"?after={after}" if after else "")

    async def __aenter__(self):
        self.socket = await websockets.connect(self.url)
        return self

    async def __aexit__(self, *_):
        await self.socket.close()

    async def next(self, wait=DEADLINE):
        """The next report, a DICOM JSON data set."""
        text = await asyncio.wait_for(self.socket.recv(), wait)
        assert isinstance(text, str), "reports are text frames"
        report = json.loads(text)
        # pydicom keeps command elements (group 0000) apart from data sets.
        command = {tag: report.pop(tag)["Value"][0] for tag in list(report) if tag.startswith("0000")}
        assert command["00000002"] == PUSH
        dataset = Dataset.from_json(report)
        dataset.event, dataset.step = command["00001002"], command["00001000"]
        return dataset

    async def until(self, wanted):
        """Reports up to the first of which `wanted` holds."""
        reports = []
        while not reports or not wanted(reports[-1]):
            reports.append(await self.next())
        return reports

    def cut(self):
        """As when the network goes: no closing handshake."""
        self.socket.transport.abort()


def says(uid, event, state=None):
    return lambda report: (report.step, report.event) == (uid, event) and report.get("ProcedureStepState") == state


def live(number, site=None):
    """One step's whole life, at one site."""
    site = site or (A, B)[number % 2]
    uid, transaction = create(site, f"Event {number}", patient="PEVENT"), generate_uid()
    change(site, uid, "IN PROGRESS", transaction, aet="WS")
    call("POST", f"{service(site)}/workitems/{uid}?{transaction}", 200, item(
        ProcedureStepProgressInformationSequence=[item(ProcedureStepProgress=str(number))]))
    call("POST", f"{service(site)}/workitems/{uid}/cancelrequest/REQ", 202, item(ReasonForCancellation="stop"))
    change(site, uid, "CANCELED", transaction)
    return uid


async def watching():
    ask = asyncio.to_thread
    await ask(call, "POST", f"{service(A)}/workitems/{GLOBAL}/subscribers/WATCH", 201)
    async with Client(A, "WATCH") as client:
        first = await ask(live, 0)
        reports = await client.until(says(first, 1, "CANCELED"))
        own = [report for report in reports if report.step == first]
        states = [report.ProcedureStepState for report in own if report.event == 1]
        assert states == ["SCHEDULED", "IN PROGRESS", "CANCELED"], states
        assert all(report.InputReadinessState == "READY" for report in own if report.event == 1)
        [assigned] = [report for report in own if report.event == 5]
        assert assigned.HumanPerformerCodeSequence[0].CodeValue == "WS"
        [progress] = [report for report in own if report.event == 3]
        assert progress.ProcedureStepProgressInformationSequence[0].ProcedureStepProgress == 0
        [asked] = [report for report in own if report.event == 2]
        assert (asked.RequestingAE, asked.ReasonForCancellation) == ("REQ", "stop")
        client.cut()
    done("state, cancel requested, progress and assigned reports")

    seen = [report.UID for report in reports]
    for n in range(1, 5):
        await ask(live, n)
    async with Client(B, "WATCH", after=seen[-1]) as client:
        fifth = await ask(live, 5)
        seen += [report.UID for report in await client.until(says(fifth, 1, "CANCELED"))]
        client.cut()
    sixth = await ask(live, 6)
    async with Client(A, "WATCH", after=seen[-1]) as client:
        seen += [report.UID for report in await client.until(says(sixth, 1, "CANCELED"))]
    async with Client(B, "WATCH") as client:
        everything = [report.UID for report in await client.until(says(sixth, 1, "CANCELED"))]
    assert len(seen) == len(set(seen)), "no report comes twice"
    assert seen == everything, f"cut twice, resumed at the other site: {len(seen)} of {len(everything)} reports"
    done(f"{len(seen)} reports over three connections to two sites: none missed, none twice")

    for after in ("1.2.3.4", "soon"):
        try:
            async with Client(A, "WATCH", after=after):
                raise AssertionError(f"opened after {after}")
        except websockets.exceptions.InvalidStatus as refused:
            assert refused.response.status_code == 400
    done("what is no event's UID is refused")


async def watching_some():
    ask = asyncio.to_thread
    filtered = f"{service(B)}/workitems/{FILTERED}/subscribers/SOME?filter=PatientID%3DPSOME"
    await ask(call, "POST", filtered, 201)
    one = await ask(create, A, "One")
    async with Client(A, "ONE") as single, Client(A, "SOME") as some:
        await ask(call, "POST", f"{service(B)}/workitems/{one}/subscribers/ONE", 201)
        [initial] = await single.until(says(one, 1, "SCHEDULED"))
        assert "UID" not in initial, "a present state is no event"
        await ask(create, B, "Other", patient="POTHER")
        wanted = await ask(create, B, "Some", patient="PSOME")
        [report] = await some.until(says(wanted, 1, "SCHEDULED"))
        await ask(call, "POST", f"{service(A)}/workitems/{one}/cancelrequest", 202)
        reports = await single.until(says(one, 1, "CANCELED"))
        assert {report.step for report in reports} == {one}
        await ask(call, "POST", filtered.replace("?", "/suspend?"), 200)
        later = await ask(create, A, "Later", patient="PSOME")
        await ask(call, "POST", f"{service(A)}/workitems/{wanted}/cancelrequest", 202)
        reports = await some.until(says(wanted, 1, "CANCELED"))
        assert later not in {report.step for report in reports}, "new workitems are not subscribed to"
    done("subscriptions to one workitem, to a filter, and suspended")


def main():
    creating()
    retrieving()
    searching()
    updating()
    changing()
    cancelling()
    subscribing()
    racing()
    asyncio.run(watching())
    asyncio.run(watching_some())


if __name__ == "__main__":
    main()
