//! The OpenAPI document: whole, sound, and of the code.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

/// Every object in a document that has this key, with the key's value.
fn with_key<'v>(value: &'v Value, key: &str, found: &mut Vec<&'v Value>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if name == key {
                    found.push(member);
                }
                with_key(member, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| with_key(item, key, found)),
        _ => {}
    }
}

/// What is wrong with a document, as far as OpenAPI 3.1.0 (sections 4.8.1, .8, .10, .12, .16) says so.
fn faults(document: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |good: bool, what: String| {
        if !good {
            faults.push(what);
        }
    };
    check(document["openapi"] == "3.1.0", "openapi".to_owned());
    for member in ["title", "version"] {
        check(document["info"][member].is_string(), format!("info.{member}"));
    }
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        check(path.starts_with('/'), format!("{path} starts with no slash"));
        for (method, operation) in item.as_object().into_iter().flatten() {
            let name = format!("{method} {path}");
            check(["get", "post", "put", "delete"].contains(&method.as_str()), format!("{name}: no such method"));
            let id = operation["operationId"].as_str().unwrap_or_default();
            check(!id.is_empty() && ids.insert(id.to_owned()), format!("{name}: operationId {id:?} is not its own"));
            check(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), format!("{name}: no summary"));
            let answers = operation["responses"].as_object();
            check(answers.is_some_and(|answers| !answers.is_empty()), format!("{name}: no answer"));
            for (status, answer) in answers.into_iter().flatten() {
                check(answer["description"].is_string(), format!("{name} {status}: no description"));
            }
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let mut keys = BTreeSet::new();
            for parameter in &parameters {
                let key = (parameter["in"].to_string(), parameter["name"].to_string());
                check(keys.insert(key), format!("{name}: {parameter} twice"));
                check(parameter["schema"].is_object(), format!("{name}: {parameter} without a schema"));
            }
            let in_path = parameters.iter().filter(|parameter| parameter["in"] == "path");
            let said: BTreeSet<&str> = in_path.filter_map(|parameter| parameter["name"].as_str()).collect();
            let braces: BTreeSet<&str> = path.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect();
            check(said == braces, format!("{name}: braces {braces:?}, parameters {said:?}"));
            check(method != "get" || operation.get("requestBody").is_none(), format!("{name}: a body"));
        }
    }
    let mut defaults = Vec::new();
    with_key(document, "default", &mut defaults);
    check(!defaults.iter().any(|default| default.is_null()), "a default is null".to_owned());
    let mut references = Vec::new();
    with_key(document, "$ref", &mut references);
    check(!references.is_empty(), "no schema is referred to".to_owned());
    for reference in references.into_iter().filter_map(Value::as_str) {
        let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        check(target.is_some(), format!("{reference} leads nowhere"));
    }
    faults
}

#[test]
fn the_document_is_sound() {
    assert_eq!(faults(&table(Table::documented(BASE)).document()), Vec::<String>::new());
}

#[test]
fn a_document_with_a_fault_is_not_sound() {
    type Harm = fn(&mut Value);
    let broken: [(&str, Harm); 7] = [
        ("default is null", |document| document["components"]["schemas"]["NewExam"]["default"] = Value::Null),
        ("openapi", |document| document["openapi"] = "3.0".into()),
        ("leads nowhere", |document| {
            drop(document["components"]["schemas"].as_object_mut().map(|all| all.remove("Exam")))
        }),
        ("braces", |document| document["paths"]["/exams/{id}"]["get"]["parameters"][0]["name"] = "exam".into()),
        ("not its own", |document| document["paths"]["/policy"]["get"]["operationId"] = "get_status".into()),
        ("no description", |document| document["paths"]["/policy"]["get"]["responses"]["200"] = serde_json::json!({})),
        ("no summary", |document| document["paths"]["/policy"]["put"]["summary"] = "".into()),
    ];
    for (what, break_it) in broken {
        let mut document = table(Table::documented(BASE)).document();
        break_it(&mut document);
        let found = faults(&document);
        assert!(found.iter().any(|fault| fault.contains(what)), "{what}: {found:?}");
    }
}

#[test]
fn a_type_that_is_taken_and_given_says_the_same_both_ways() {
    assert_eq!(table(Table::documented(BASE)).contradictions(), Vec::<String>::new());
}

#[test]
fn a_route_says_what_its_handler_takes_and_gives() {
    let document = table(Table::documented(BASE)).document();
    let report = &document["paths"]["/exams/{id}/report"]["post"];
    let body = report["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str().expect("a schema");
    let body = document.pointer(&body[1..]).expect("a body");
    assert_eq!(body["required"], serde_json::json!(["user", "token", "text"]));
    assert_eq!(body["properties"]["kind"]["enum"], serde_json::json!(["preliminary", "final"]));
    assert_eq!(body["additionalProperties"], false);
    let names: Vec<&str> =
        report["parameters"].as_array().into_iter().flatten().filter_map(|said| said["name"].as_str()).collect();
    assert_eq!(names, ["id", "Idempotency-Key"]);
    let list = &document["paths"]["/exams"]["get"];
    let names: BTreeSet<&str> =
        list["parameters"].as_array().into_iter().flatten().filter_map(|said| said["name"].as_str()).collect();
    let query = ["accession", "after", "fresh", "hospital", "limit", "modality", "patient", "state", "to-regulate"];
    assert_eq!(names, BTreeSet::from(query));
    let answer = list["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].as_str().expect("a schema");
    let answer = document.pointer(&answer[1..]).expect("an answer");
    for member in ["age_ms", "fresh", "exams", "next"] {
        assert!(answer["properties"][member].is_object(), "{member} in {answer}");
    }
    assert_eq!(
        report["responses"]["default"]["content"]["application/problem+json"]["schema"]["$ref"],
        "#/components/schemas/Problem"
    );
}

#[test]
fn no_route_is_served_beside_the_table() {
    // A router of its own would serve what the document does not know.
    let file = include_str!("../api.rs");
    assert!(!file.contains("Router::new()") && !file.contains(".route("));
}
