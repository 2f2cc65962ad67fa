"""Workitems as the standard wants them, and how a check is told: for the clients of UPS-RS and of the DIMSE service."""

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid


def done(what):
    print("ok", what, flush=True)


def item(**attributes):
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def workitem(label, patient="P1", accession="", **changes):
    """All that N-CREATE needs (PS3.4 table CC.2.5-3)."""
    dataset = item(
        TransactionUID="", ScheduledProcedureStepPriority="MEDIUM", ProcedureStepLabel=label,
        WorklistLabel="EMERGENCY", ScheduledProcessingParametersSequence=[], ScheduledStationNameCodeSequence=[],
        ScheduledStationClassCodeSequence=[], ScheduledStationGeographicLocationCodeSequence=[],
        ScheduledProcedureStepStartDateTime="20261124120000", ScheduledWorkitemCodeSequence=[],
        CommentsOnTheScheduledProcedureStep="", InputReadinessState="READY", InputInformationSequence=[],
        PatientName="Doe^Jané", PatientID=patient, OtherPatientIDsSequence=[], PatientBirthDate="19700131",
        PatientSex="F", AdmissionID="", IssuerOfAdmissionIDSequence=[], AdmittingDiagnosesDescription="",
        AdmittingDiagnosesCodeSequence=[],
        ReferencedRequestSequence=[item(
            StudyInstanceUID=generate_uid(), AccessionNumber=accession, RequestedProcedureDescription="CT head",
            RequestingService="Hospital A")],
        ProcedureStepState="SCHEDULED", ProcedureStepProgressInformationSequence=[],
        UnifiedProcedureStepPerformedProcedureSequence=[])
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset
