//! DICOM audit messages (PS3.15 section A.5, which narrows RFC 3881), one line of XML each.

use std::fmt::Write as _;

use super::Described;
use super::class::{Class, Code};
use crate::http::rfc3339;

/// The coding scheme of our own kinds: private ones begin with 99 (PS3.16 section 8.2).
const OWN_SCHEME: &str = "99MAILLAGE";
/// *Application Server* (RFC 3881 section 5.4.3).
const SOURCE_TYPE: &str = "4";

/// The message that tells an audit repository of an entry. `mesh` and `observer` name who tells it.
pub(crate) fn message(described: &Described, mesh: &str, observer: &str) -> String {
    let (entry, class) = (described.entry(), Class::of(described.entry().kind.as_str()));
    // 0 success, 4 minor failure: refused, nothing changed.
    let (at, outcome) = (rfc3339(entry.at), if described.is_done() { 0 } else { 4 });
    let mut xml = String::from(r#"<?xml version="1.0" encoding="UTF-8"?><AuditMessage>"#);
    put(
        &mut xml,
        format_args!(
            r#"<EventIdentification EventActionCode="{}" EventDateTime="{at}" EventOutcomeIndicator="{outcome}">"#,
            class.action
        ),
    );
    coded(&mut xml, "EventID", class.id);
    if let Some(code) = class.type_code {
        coded(&mut xml, "EventTypeCode", code);
    }
    let kind = escape(entry.kind.as_str());
    put(
        &mut xml,
        format_args!(r#"<EventTypeCode csd-code="{kind}" codeSystemName="{OWN_SCHEME}" originalText="{kind}"/>"#),
    );
    put(&mut xml, format_args!("<EventOutcomeDescription>{}</EventOutcomeDescription>", escape(&told(described))));
    xml.push_str("</EventIdentification>");
    participants(&mut xml, described);
    put(
        &mut xml,
        format_args!(
            r#"<AuditSourceIdentification AuditEnterpriseSiteID="{}" AuditSourceID="{}"><AuditSourceTypeCode csd-code="{SOURCE_TYPE}"/></AuditSourceIdentification>"#,
            escape(mesh),
            escape(observer)
        ),
    );
    objects(&mut xml, described);
    xml.push_str("</AuditMessage>");
    xml
}

/// What became of it, and why it was asked.
fn told(described: &Described) -> String {
    match described.entry().why.as_str() {
        "" => described.entry().outcome.to_string(),
        why => format!("{}; reason given: {why}", described.entry().outcome),
    }
}

fn participants(xml: &mut String, described: &Described) {
    let entry = described.entry();
    if !entry.user.is_empty() {
        let user = escape(entry.user.as_str());
        put(xml, format_args!(r#"<ActiveParticipant UserID="{user}" UserIsRequestor="true"/>"#));
    }
    // Unasked, a node does what it does in its own name.
    let requests = entry.user.is_empty();
    put(
        xml,
        format_args!(
            r#"<ActiveParticipant UserID="{}" AlternativeUserID="site {}" UserIsRequestor="{requests}">"#,
            escape(&described.site),
            entry.site
        ),
    );
    coded(xml, "RoleIDCode", ("110150", "Application"));
    xml.push_str("</ActiveParticipant>");
}

fn objects(xml: &mut String, described: &Described) {
    let (entry, subject) = (described.entry(), &described.subject);
    if let Some(exam) = entry.exam {
        // System object (2), job (20); the number is the mesh's own (12, URI).
        object(xml, &format!("urn:maillage:exam:{exam}"), ("2", "20"), ("12", "RFC-3881", "URI"), "exam");
        for study in &subject.studies {
            // System object (2), report (3): PS3.15 table A.5.2-1.
            object(xml, study.as_str(), ("2", "3"), ("110180", "DCM", "Study Instance UID"), "study");
        }
        let (id, issuer) = &subject.patient;
        if !id.is_empty() {
            // Person (1), patient (1), patient number (2); as HL7 writes an identifier with its issuer.
            let number = if issuer.is_empty() { id.to_string() } else { format!("{id}^^^{issuer}") };
            object(xml, &number, ("1", "1"), ("2", "RFC-3881", "Patient Number"), "patient");
        }
    }
    // Security resource (13): the trail's own entry, by which a repository finds gaps and repeats.
    let index = format!("urn:maillage:audit:{}", entry.index);
    put(
        xml,
        format_args!(
            r#"<ParticipantObjectIdentification ParticipantObjectID="{index}" ParticipantObjectTypeCode="2" ParticipantObjectTypeCodeRole="13"><ParticipantObjectIDTypeCode csd-code="12" codeSystemName="RFC-3881" originalText="URI"/><ParticipantObjectName>audit entry</ParticipantObjectName>"#
        ),
    );
    for (name, value) in [("chain", &described.link.chain), ("command", &entry.command), ("writes", &entry.writes)] {
        let value = data_encoding::BASE64.encode(value);
        put(xml, format_args!(r#"<ParticipantObjectDetail type="{name}" value="{value}"/>"#));
    }
    xml.push_str("</ParticipantObjectIdentification>");
}

fn object(
    xml: &mut String,
    id: &str,
    (kind, role): (&str, &str),
    (code, scheme, text): (&str, &str, &str),
    name: &str,
) {
    let id = escape(id);
    put(
        xml,
        format_args!(
            r#"<ParticipantObjectIdentification ParticipantObjectID="{id}" ParticipantObjectTypeCode="{kind}" ParticipantObjectTypeCodeRole="{role}"><ParticipantObjectIDTypeCode csd-code="{code}" codeSystemName="{scheme}" originalText="{text}"/><ParticipantObjectName>{name}</ParticipantObjectName></ParticipantObjectIdentification>"#
        ),
    );
}

fn coded(xml: &mut String, element: &str, (code, meaning): Code) {
    put(xml, format_args!(r#"<{element} csd-code="{code}" codeSystemName="DCM" originalText="{meaning}"/>"#));
}

fn put(xml: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = xml.write_fmt(text);
}

/// Text as it may stand in an attribute or an element, on one line. What XML 1.0 has no way to say
/// (section 2.2) is replaced.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => {
                let _ = write!(escaped, "&#{};", u32::from(c));
            }
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod schema;

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::audit::describe::testing::described;

    #[test]
    fn a_claim_is_a_procedure_record() {
        let message = message(&described("claim-take"), "ouest", "rennes").replace("><", ">\n<");
        expect![[r#"
            <?xml version="1.0" encoding="UTF-8"?>
            <AuditMessage>
            <EventIdentification EventActionCode="U" EventDateTime="2026-01-02T03:04:05.719Z" EventOutcomeIndicator="0">
            <EventID csd-code="110111" codeSystemName="DCM" originalText="Procedure Record"/>
            <EventTypeCode csd-code="claim-take" codeSystemName="99MAILLAGE" originalText="claim-take"/>
            <EventOutcomeDescription>done; reason given: a &lt;reason&gt; &amp; &quot;more&quot;</EventOutcomeDescription>
            </EventIdentification>
            <ActiveParticipant UserID="dr-a" UserIsRequestor="true"/>
            <ActiveParticipant UserID="lyon" AlternativeUserID="site 7" UserIsRequestor="false">
            <RoleIDCode csd-code="110150" codeSystemName="DCM" originalText="Application"/>
            </ActiveParticipant>
            <AuditSourceIdentification AuditEnterpriseSiteID="ouest" AuditSourceID="rennes">
            <AuditSourceTypeCode csd-code="4"/>
            </AuditSourceIdentification>
            <ParticipantObjectIdentification ParticipantObjectID="urn:maillage:exam:12" ParticipantObjectTypeCode="2" ParticipantObjectTypeCodeRole="20">
            <ParticipantObjectIDTypeCode csd-code="12" codeSystemName="RFC-3881" originalText="URI"/>
            <ParticipantObjectName>exam</ParticipantObjectName>
            </ParticipantObjectIdentification>
            <ParticipantObjectIdentification ParticipantObjectID="1.2.3" ParticipantObjectTypeCode="2" ParticipantObjectTypeCodeRole="3">
            <ParticipantObjectIDTypeCode csd-code="110180" codeSystemName="DCM" originalText="Study Instance UID"/>
            <ParticipantObjectName>study</ParticipantObjectName>
            </ParticipantObjectIdentification>
            <ParticipantObjectIdentification ParticipantObjectID="P&amp;1^^^HOSP" ParticipantObjectTypeCode="1" ParticipantObjectTypeCodeRole="1">
            <ParticipantObjectIDTypeCode csd-code="2" codeSystemName="RFC-3881" originalText="Patient Number"/>
            <ParticipantObjectName>patient</ParticipantObjectName>
            </ParticipantObjectIdentification>
            <ParticipantObjectIdentification ParticipantObjectID="urn:maillage:audit:41" ParticipantObjectTypeCode="2" ParticipantObjectTypeCodeRole="13">
            <ParticipantObjectIDTypeCode csd-code="12" codeSystemName="RFC-3881" originalText="URI"/>
            <ParticipantObjectName>audit entry</ParticipantObjectName>
            <ParticipantObjectDetail type="chain" value="BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU="/>
            <ParticipantObjectDetail type="command" value="AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM="/>
            <ParticipantObjectDetail type="writes" value="BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ="/>
            </ParticipantObjectIdentification>
            </AuditMessage>"#]]
        .assert_eq(&message);
    }

    #[test]
    fn break_glass_is_an_emergency_override_and_a_refusal_a_minor_failure() {
        let mut glass = described("break-glass");
        glass.link.entry.outcome = maillage_consensus::ids::Line::fitted("no such exam");
        let message = message(&glass, "ouest", "rennes");
        assert!(message.contains(r#"csd-code="110113""#) && message.contains(r#"csd-code="110127""#), "{message}");
        assert!(message.contains(r#"EventOutcomeIndicator="4""#), "{message}");
    }

    #[test]
    fn no_text_breaks_the_line_or_the_markup() {
        assert_eq!(escape("a\nb\t\u{1b}\u{ffff}<é>'\"&"), "a&#10;b&#9;\u{fffd}\u{fffd}&lt;é&gt;'&quot;&amp;");
    }
}
