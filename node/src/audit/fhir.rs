//! FHIR R4 `AuditEvent` resources (<https://hl7.org/fhir/R4/auditevent.html>), in the same codes as the
//! DICOM messages: R4 takes them over.

use serde_json::{Value, json};

use super::Described;
use super::class::{Class, Code};
use crate::http::rfc3339;

const DCM: &str = "http://dicom.nema.org/resources/ontology/DCM";
const OWN: &str = "urn:maillage:audit:kind";
const ENTITY_TYPE: &str = "http://terminology.hl7.org/CodeSystem/audit-entity-type";
const OBJECT_ROLE: &str = "http://terminology.hl7.org/CodeSystem/object-role";
const SOURCE_TYPE: &str = "http://terminology.hl7.org/CodeSystem/security-source-type";

/// The resource that tells of an entry. `mesh` and `observer` name who tells it.
pub(crate) fn event(described: &Described, mesh: &str, observer: &str) -> Value {
    let (entry, class) = (described.entry(), Class::of(described.entry().kind.as_str()));
    let own = json!({ "system": OWN, "code": entry.kind });
    let mut event = json!({
        "resourceType": "AuditEvent",
        // Unique in the mesh; repeats of an export have the same.
        "id": format!("maillage-audit-{}", entry.index),
        "type": coding(class.id),
        "subtype": class.type_code.map(coding).into_iter().chain([own]).collect::<Vec<_>>(),
        "action": class.action.to_string(),
        "recorded": rfc3339(entry.at),
        "outcome": if described.is_done() { "0" } else { "4" },
        "outcomeDesc": entry.outcome,
        "agent": agents(described),
        "source": {
            "site": mesh,
            "observer": { "display": observer },
            "type": [{ "system": SOURCE_TYPE, "code": "4", "display": "Application Server" }],
        },
        "entity": entities(described),
    });
    if !entry.why.is_empty() {
        event["purposeOfEvent"] = json!([{ "text": entry.why }]);
    }
    event
}

fn coding((code, display): Code) -> Value {
    json!({ "system": DCM, "code": code, "display": display })
}

fn agents(described: &Described) -> Vec<Value> {
    let entry = described.entry();
    let mut agents = Vec::new();
    if !entry.user.is_empty() {
        agents.push(json!({ "altId": entry.user, "who": { "display": entry.user }, "requestor": true }));
    }
    agents.push(json!({
        "type": { "coding": [coding(("110150", "Application"))] },
        "who": {
            "identifier": { "system": "urn:maillage:site", "value": entry.site.to_string() },
            "display": described.site,
        },
        "requestor": entry.user.is_empty(),
    }));
    agents
}

fn entities(described: &Described) -> Vec<Value> {
    let (entry, subject) = (described.entry(), &described.subject);
    let entity = |system: &str, value: &str, kind: &str, role: &str| {
        json!({
            "what": { "identifier": { "system": system, "value": value } },
            "type": { "system": ENTITY_TYPE, "code": kind },
            "role": { "system": OBJECT_ROLE, "code": role },
        })
    };
    let mut entities = Vec::new();
    if let Some(exam) = entry.exam {
        entities.push(entity("urn:maillage:exam", &exam.to_string(), "2", "20"));
        entities.extend(subject.studies.iter().map(|uid| entity("urn:dicom:uid", &format!("urn:oid:{uid}"), "2", "3")));
        if let (id, issuer) = &subject.patient
            && !id.is_empty()
        {
            let system = if issuer.is_empty() { "urn:maillage:patient".to_owned() } else { issuer.to_string() };
            let mut patient = entity(&system, id.as_str(), "1", "1");
            // The issuer is a name of the hospital's, not a URI: the assigner says so.
            patient["what"]["identifier"] = match issuer.as_str() {
                "" => json!({ "value": id }),
                issuer => json!({ "value": id, "assigner": { "display": issuer } }),
            };
            entities.push(patient);
        }
    }
    let hex = |bytes: &[u8; 32]| data_encoding::HEXLOWER.encode(bytes);
    let mut own = entity("urn:maillage:audit", &entry.index.to_string(), "2", "13");
    own["detail"] = json!([
        { "type": "chain", "valueString": hex(&described.link.chain) },
        { "type": "command", "valueString": hex(&entry.command) },
        { "type": "writes", "valueString": hex(&entry.writes) },
    ]);
    entities.push(own);
    entities
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::describe::testing::described;

    #[test]
    fn an_event_has_what_r4_requires_and_says_who_what_and_why() {
        let event = event(&described("report"), "ouest", "rennes");
        for required in ["type", "recorded", "agent", "source"] {
            assert!(!event[required].is_null(), "{required}");
        }
        assert_eq!(event["type"]["code"], "110111");
        assert_eq!(event["subtype"][0], json!({ "system": OWN, "code": "report" }));
        assert_eq!((&event["action"], &event["outcome"]), (&json!("C"), &json!("0")));
        assert_eq!(event["recorded"], "2026-01-02T03:04:05.719Z");
        assert_eq!(event["purposeOfEvent"][0]["text"], "a <reason> & \"more\"");
        let agents = event["agent"].as_array().expect("agents");
        assert!(agents.iter().all(|agent| agent["requestor"].is_boolean()), "R4 requires it");
        assert_eq!((&agents[0]["altId"], &agents[1]["who"]["display"]), (&json!("dr-a"), &json!("lyon")));
        assert_eq!(event["source"]["observer"]["display"], "rennes");
        let entities = event["entity"].as_array().expect("entities");
        let values: Vec<_> = entities.iter().map(|entity| entity["what"]["identifier"]["value"].clone()).collect();
        assert_eq!(values, ["12", "urn:oid:1.2.3", "P&1", "41"]);
        assert_eq!(entities[2]["what"]["identifier"]["assigner"]["display"], "HOSP");
    }

    #[test]
    fn what_a_node_does_unasked_it_does_in_its_own_name() {
        let mut unasked = described("attest");
        unasked.link.entry.user = maillage_consensus::ids::Name::default();
        let event = event(&unasked, "ouest", "rennes");
        let agents = event["agent"].as_array().expect("agents");
        assert_eq!((agents.len(), &agents[0]["requestor"]), (1, &json!(true)));
    }
}
