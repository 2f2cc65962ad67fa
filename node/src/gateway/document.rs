//! A report as a hospital is given it: one JSON object that says all of it by itself, with the same as an HL7 FHIR
//! R4 `DiagnosticReport` inside.

use data_encoding::{BASE64, HEXLOWER};
use maillage_consensus::exam::{Patient, ReportKind};
use serde_json::{Value, json};

use super::wire::Delivery;
use crate::http::rfc3339;

/// Of the document. Fields are only ever added to it.
const FORMAT: u32 = 1;

/// The document of a report.
pub(super) fn document(delivery: &Delivery, mesh: &str, mesh_id: &str) -> Value {
    let Delivery { request, studies, report, site_name, stands } = delivery;
    let patient = &request.patient;
    json!({
        "format": FORMAT,
        "mesh": { "name": mesh, "id": mesh_id },
        "exam": report.exam,
        "accession": request.accession,
        "hospital": request.hospital,
        "physician": request.physician,
        "patient": {
            "id": patient.id,
            "issuer": patient.issuer,
            "name": patient.name,
            "birth_date": patient.birth_date,
            "sex": patient.sex,
        },
        "modality": request.modality,
        "description": request.description,
        "studies": studies,
        "report": {
            "number": report.number,
            "kind": report.signed.kind.as_str(),
            "stands": stands,
            "text": report.text,
            "signed_by": report.user,
            "signed_at": rfc3339(report.at),
            "site": { "id": report.site, "name": site_name },
            "signature": HEXLOWER.encode(&report.signed.signature),
        },
        "fhir": diagnostic_report(delivery, mesh_id),
    })
}

/// <https://hl7.org/fhir/R4/diagnosticreport.html>
fn diagnostic_report(delivery: &Delivery, mesh_id: &str) -> Value {
    let Delivery { request, studies, report, site_name, .. } = delivery;
    let status = match report.signed.kind {
        ReportKind::Final | ReportKind::SecondRead => "final",
        ReportKind::Preliminary => "preliminary",
        ReportKind::Addendum => "appended",
    };
    let studies: Vec<Value> = studies
        .iter()
        .map(|uid| {
            json!({ "type": "ImagingStudy", "identifier": { "system": "urn:dicom:uid", "value": format!("urn:oid:{uid}") } })
        })
        .collect();
    let mut resource = json!({
        "resourceType": "DiagnosticReport",
        "contained": [fhir_patient(&request.patient)],
        "identifier": [{
            "system": format!("urn:maillage:{mesh_id}"),
            "value": format!("{}.{}", report.exam, report.number),
        }],
        "status": status,
        "category": [{ "coding": [{ "system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD" }] }],
        "code": { "text": if request.description.is_empty() { request.modality.as_str() } else { request.description.as_str() } },
        "subject": { "reference": "#patient" },
        "issued": rfc3339(report.at),
        "resultsInterpreter": [{ "display": format!("{}, {site_name}", report.user) }],
        "conclusion": report.text,
        "presentedForm": [{
            "contentType": "text/plain; charset=utf-8",
            "data": BASE64.encode(report.text.as_str().as_bytes()),
        }],
    });
    if !request.accession.is_empty() {
        resource["basedOn"] = json!([{
            "type": "ServiceRequest",
            "identifier": {
                "type": { "coding": [{ "system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN" }] },
                "value": request.accession,
            },
        }]);
    }
    if !studies.is_empty() {
        resource["imagingStudy"] = json!(studies);
    }
    resource
}

/// <https://hl7.org/fhir/R4/patient.html>
fn fhir_patient(patient: &Patient) -> Value {
    let mut resource = json!({ "resourceType": "Patient", "id": "patient" });
    if !patient.id.is_empty() {
        let mut identifier = json!({ "value": patient.id });
        if !patient.issuer.is_empty() {
            identifier["assigner"] = json!({ "display": patient.issuer });
        }
        resource["identifier"] = json!([identifier]);
    }
    if !patient.name.is_empty() {
        // Person Name's first component group: family, given, middle (PS3.5 section 6.2.1).
        let mut parts = patient.name.as_str().split('=').next().unwrap_or_default().split('^');
        let mut name = json!({ "text": patient.name });
        if let Some(family) = parts.next().filter(|part| !part.is_empty()) {
            name["family"] = json!(family);
        }
        let given: Vec<&str> = parts.take(2).filter(|part| !part.is_empty()).collect();
        if !given.is_empty() {
            name["given"] = json!(given);
        }
        resource["name"] = json!([name]);
    }
    let date = patient.birth_date.as_str();
    if date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit()) {
        resource["birthDate"] = json!(format!("{}-{}-{}", &date[..4], &date[4..6], &date[6..]));
    }
    resource["gender"] = json!(match patient.sex.as_str() {
        "M" => "male",
        "F" => "female",
        "O" => "other",
        _ => "unknown",
    });
    resource
}

#[cfg(test)]
mod tests {
    use maillage_consensus::exam::Text8;
    use maillage_consensus::ids::Line;

    use super::super::wire::tests::delivery;
    use super::*;

    #[test]
    fn a_document_says_the_whole_report_by_itself() {
        let mut delivery = delivery(5, 2);
        delivery.request.patient.birth_date = Text8::fitted("19700131");
        delivery.request.patient.issuer = Line::fitted("CHU");
        delivery.report.signed.kind = ReportKind::Addendum;
        let document = document(&delivery, "ouest", "abab");
        assert_eq!(document["report"]["text"], json!("nothing\nnew"));
        assert_eq!(document["report"]["signed_at"], json!("2023-11-14T22:13:20Z"));
        assert_eq!((&document["accession"], &document["patient"]["id"]), (&json!("A1"), &json!("P1")));
        let fhir = &document["fhir"];
        assert_eq!((&fhir["status"], &fhir["identifier"][0]["value"]), (&json!("appended"), &json!("5.2")));
        assert_eq!(fhir["basedOn"][0]["identifier"]["value"], json!("A1"));
        assert_eq!(fhir["imagingStudy"][0]["identifier"]["value"], json!("urn:oid:1.2"));
        let patient = &fhir["contained"][0];
        assert_eq!((&patient["birthDate"], &patient["gender"]), (&json!("1970-01-31"), &json!("unknown")));
        assert_eq!((&patient["name"][0]["family"], &patient["name"][0]["given"]), (&json!("TEST"), &json!(["NOBODY"])));
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let mut delivery = delivery(5, 1);
        delivery.request.patient = Patient { birth_date: Text8::fitted("197é"), ..Patient::default() };
        delivery.request.accession = Line::default();
        delivery.studies.clear();
        let document = document(&delivery, "ouest", "abab");
        let (fhir, patient) = (&document["fhir"], &document["fhir"]["contained"][0]);
        for absent in [&fhir["basedOn"], &fhir["imagingStudy"], &patient["name"], &patient["birthDate"]] {
            assert!(absent.is_null(), "{absent}");
        }
    }
}
