//! Whether messages have the structure that the schema of PS3.15 section A.5.1.1 asks for: which elements,
//! in which order and how often, with which attributes, and of which values. In our own words, as a table.

use super::message;
use crate::audit::describe::testing::described;

/// An element as it was read.
#[derive(Debug, Default)]
struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    children: Vec<Element>,
    text: String,
}

/// Reads one element and what follows it: of XML only what the messages have.
fn read(xml: &str) -> (Element, &str) {
    let open = xml.strip_prefix('<').unwrap_or_else(|| panic!("an element at {xml:.60}"));
    let name_len = open.find([' ', '/', '>']).expect("a name");
    let mut element = Element { name: open[..name_len].to_owned(), ..Element::default() };
    let mut rest = &open[name_len..];
    while let Some(more) = rest.strip_prefix(' ') {
        let (name, more) = more.split_once("=\"").expect("an attribute");
        let (value, more) = more.split_once('"').expect("a value");
        assert!(!value.contains('<') && !name.contains(['>', ' ']), "{name}={value}");
        assert!(element.attributes.iter().all(|(other, _)| other != name), "{name} twice");
        element.attributes.push((name.to_owned(), value.to_owned()));
        rest = more;
    }
    if let Some(more) = rest.strip_prefix("/>") {
        return (element, more);
    }
    rest = rest.strip_prefix('>').expect("the end of the start tag");
    loop {
        let text_len = rest.find('<').expect("an end tag");
        element.text.push_str(&rest[..text_len]);
        rest = &rest[text_len..];
        if let Some(more) = rest.strip_prefix("</") {
            let end = format!("{}>", element.name);
            return (element, more.strip_prefix(&end).expect("its own end tag"));
        }
        let (child, more) = read(rest);
        element.children.push(child);
        rest = more;
    }
}

/// The values that an attribute may have.
#[derive(Clone, Copy)]
enum Values {
    Any,
    OneOf(&'static [&'static str]),
    /// 1 to this.
    UpTo(u8),
    DateTime,
    Boolean,
    Base64,
}

use Values::{Any, Base64, Boolean, DateTime, OneOf, UpTo};

impl Values {
    fn has(self, value: &str) -> bool {
        match self {
            Any => true,
            OneOf(values) => values.contains(&value),
            UpTo(last) => value.parse::<u8>().is_ok_and(|number| (1..=last).contains(&number)),
            DateTime => time::OffsetDateTime::parse(value, &time::format_description::well_known::Rfc3339).is_ok(),
            Boolean => ["true", "false", "0", "1"].contains(&value),
            Base64 => data_encoding::BASE64.decode(value.as_bytes()).is_ok(),
        }
    }
}

/// An attribute: its name, whether it must be there, its values.
type Attribute = (&'static str, bool, Values);
/// A kind of child: its name, and how often at least and at most.
type Child = (&'static str, usize, usize);

const MANY: usize = usize::MAX;
const CODED: &[Attribute] =
    &[("csd-code", true, Any), ("codeSystemName", true, Any), ("displayName", false, Any), ("originalText", true, Any)];

/// What an element may hold.
fn rule(name: &str) -> (&'static [Attribute], &'static [Child]) {
    match name {
        "AuditMessage" => (
            &[],
            &[
                ("EventIdentification", 1, 1),
                ("ActiveParticipant", 1, MANY),
                ("AuditSourceIdentification", 1, 1),
                ("ParticipantObjectIdentification", 0, MANY),
            ],
        ),
        "EventIdentification" => (
            &[
                ("EventActionCode", false, OneOf(&["C", "R", "U", "D", "E"])),
                ("EventDateTime", true, DateTime),
                ("EventOutcomeIndicator", true, OneOf(&["0", "4", "8", "12"])),
            ],
            &[("EventID", 1, 1), ("EventTypeCode", 0, MANY), ("EventOutcomeDescription", 0, 1)],
        ),
        "ActiveParticipant" => (
            &[
                ("UserID", true, Any),
                ("AlternativeUserID", false, Any),
                ("UserName", false, Any),
                ("UserIsRequestor", true, Boolean),
                ("NetworkAccessPointID", false, Any),
                ("NetworkAccessPointTypeCode", false, UpTo(5)),
            ],
            &[("RoleIDCode", 0, MANY), ("MediaIdentifier", 0, 1)],
        ),
        "AuditSourceIdentification" => (
            &[("AuditEnterpriseSiteID", false, Any), ("AuditSourceID", true, Any)],
            &[("AuditSourceTypeCode", 0, MANY)],
        ),
        // One of the schema's own digits needs no coding scheme; another code does.
        "AuditSourceTypeCode" => (&[("csd-code", true, UpTo(9))], &[]),
        "ParticipantObjectIdentification" => (
            &[
                ("ParticipantObjectID", true, Any),
                ("ParticipantObjectTypeCode", false, UpTo(4)),
                ("ParticipantObjectTypeCodeRole", false, UpTo(26)),
                ("ParticipantObjectDataLifeCycle", false, UpTo(15)),
                ("ParticipantObjectSensitivity", false, Any),
            ],
            // A query may stand in the name's place; the messages have none.
            &[
                ("ParticipantObjectIDTypeCode", 1, 1),
                ("ParticipantObjectName", 1, 1),
                ("ParticipantObjectDetail", 0, MANY),
                ("ParticipantObjectDescription", 0, MANY),
            ],
        ),
        "ParticipantObjectDetail" => (&[("type", true, Any), ("value", true, Base64)], &[]),
        "EventID" | "EventTypeCode" | "RoleIDCode" | "ParticipantObjectIDTypeCode" => (CODED, &[]),
        "EventOutcomeDescription" | "ParticipantObjectName" => (&[], &[]),
        other => panic!("the schema has no {other}"),
    }
}

/// What of `element` is against the schema.
fn faults(element: &Element, found: &mut Vec<String>) {
    let (attributes, children) = rule(&element.name);
    for (name, required, values) in attributes {
        match element.attributes.iter().find(|(given, _)| given == name) {
            Some((_, value)) if values.has(value) => {}
            Some((_, value)) => found.push(format!("{}: {name} is {value:?}", element.name)),
            None if *required => found.push(format!("{}: no {name}", element.name)),
            None => {}
        }
    }
    for (name, _) in &element.attributes {
        if !attributes.iter().any(|(known, ..)| known == name) {
            found.push(format!("{}: {name} is unknown", element.name));
        }
    }
    let mut rest = element.children.as_slice();
    for (name, least, most) in children {
        let count = rest.iter().take_while(|child| child.name == *name).count();
        if !(*least..=*most).contains(&count) {
            found.push(format!("{}: {count} of {name}", element.name));
        }
        rest = &rest[count..];
    }
    if let Some(child) = rest.first() {
        found.push(format!("{}: {} is out of place", element.name, child.name));
    }
    let is_text = matches!(element.name.as_str(), "EventOutcomeDescription" | "ParticipantObjectName");
    if !is_text && !element.text.is_empty() {
        found.push(format!("{}: text", element.name));
    }
    for child in &element.children {
        if children.iter().any(|(name, ..)| *name == child.name) {
            faults(child, found);
        }
    }
}

fn faults_of(message: &str) -> Vec<String> {
    let body = message.strip_prefix(r#"<?xml version="1.0" encoding="UTF-8"?>"#).expect("a declaration");
    let (root, rest) = read(body);
    assert_eq!((root.name.as_str(), rest), ("AuditMessage", ""));
    let mut found = Vec::new();
    faults(&root, &mut found);
    found
}

/// The kinds of every command, so that each class of message is made.
const KINDS: &[&str] = &[
    "found",
    "create-token",
    "join",
    "open-session",
    "expire-session",
    "add-exam",
    "claim-take",
    "release",
    "complete",
    "record-study",
    "cancel",
    "prioritise",
    "attest",
    "order",
    "regulate",
    "arrive",
    "report",
    "deliver",
    "tell",
    "create-workitem",
    "ask-cancel",
    "subscribe",
    "break-glass",
    "set-policy",
    "something-later",
];

#[test]
fn every_message_has_the_structure_of_the_schema_whatever_was_done_by_whom_to_whom() {
    for kind in KINDS {
        let whole = described(kind);
        let mut unasked = whole.clone();
        unasked.link.entry.user = Default::default();
        let mut refused = whole.clone();
        refused.link.entry.outcome = maillage_consensus::ids::Line::fitted("no such exam");
        let mut of_nothing = whole.clone();
        (of_nothing.link.entry.exam, of_nothing.subject) = (None, Default::default());
        for described in [whole, unasked, refused, of_nothing] {
            let message = message(&described, "the \"west\"", "<rennes>");
            assert_eq!(faults_of(&message), [""; 0], "{message}");
        }
    }
}

#[test]
fn codes_are_those_of_the_standards_tables() {
    let message = message(&described("claim-take"), "ouest", "rennes");
    // PS3.16 CID 400 and CID 402; PS3.15 table A.5.2-1 for the study and the patient.
    for code in [
        r#"<EventID csd-code="110111" codeSystemName="DCM" originalText="Procedure Record"/>"#,
        r#"<RoleIDCode csd-code="110150" codeSystemName="DCM" originalText="Application"/>"#,
        r#"<ParticipantObjectIDTypeCode csd-code="110180" codeSystemName="DCM" originalText="Study Instance UID"/>"#,
        r#"ParticipantObjectTypeCode="1" ParticipantObjectTypeCodeRole="1"><ParticipantObjectIDTypeCode csd-code="2""#,
    ] {
        assert!(message.contains(code), "{code} in {message}");
    }
}

#[test]
fn the_check_finds_what_the_schema_forbids() {
    let right = message(&described("claim-take"), "ouest", "rennes");
    for (from, to, fault) in [
        (" EventDateTime=\"", " EventTime=\"", "EventIdentification: no EventDateTime"),
        ("EventOutcomeIndicator=\"0\"", "EventOutcomeIndicator=\"1\"", "EventOutcomeIndicator is \"1\""),
        ("UserIsRequestor=\"true\"", "UserIsRequestor=\"yes\"", "UserIsRequestor is \"yes\""),
        ("codeSystemName=\"DCM\" ", "", "EventID: no codeSystemName"),
        ("<ParticipantObjectName>exam</ParticipantObjectName>", "", "0 of ParticipantObjectName"),
        ("AuditSourceID=\"rennes\"", "", "AuditSourceIdentification: no AuditSourceID"),
        ("type=\"chain\" value=\"", "type=\"chain\" value=\"*", "ParticipantObjectDetail: value"),
        ("ParticipantObjectTypeCodeRole=\"20\"", "ParticipantObjectTypeCodeRole=\"27\"", "TypeCodeRole is \"27\""),
        (
            "</EventIdentification>",
            "<EventID csd-code=\"1\" codeSystemName=\"x\" originalText=\"x\"/></EventIdentification>",
            "EventID is out of place",
        ),
    ] {
        let wrong = right.replacen(from, to, 1).replace(" >", ">");
        assert_ne!(wrong, right, "{from} is there");
        let found = faults_of(&wrong);
        assert!(found.iter().any(|found| found.contains(fault)), "{fault:?} in {found:?}");
    }
}
