//! What the mesh agrees on for its waiting room: partner hospitals with their contracts, and the policy.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use maillage_consensus::command::{Command, LIST_MAX};
use maillage_consensus::exam::Text8;
use maillage_consensus::ids::{Line, Name, SiteId};
use maillage_consensus::mesh::Site;
use maillage_consensus::order::{Hospital, Keep, Place, Policy};
use maillage_consensus::{Outcome, View};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::exams::unexpected;
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, UrlQuery, field};
use crate::http::problem::Problem;
use crate::http::reading::{FreshQuery, Read};

/// The shortest time in which somebody can be asked to be told of a critical result.
const CRITICAL_SECONDS_MIN: u64 = 60;
/// The longest: a week. What may wait for longer is not critical.
const CRITICAL_SECONDS_MAX: u64 = 7 * 24 * 3600;
/// The longest retention: a century. A number beyond it is a mistake.
const RETENTION_SECONDS_MAX: u64 = 100 * 366 * 24 * 3600;

/// A partner hospital.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Hospital")]
pub(super) struct HospitalLine {
    name: String,
    finess: String,
    territory: String,
    department: String,
    region: String,
    /// The names of the sites whose contract covers it; empty for all.
    sites: Vec<String>,
    regulate: bool,
    /// For how long its images are kept, when it is not as the policy says.
    retention: Vec<KeepLine>,
}

/// For how long images are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Keep")]
pub(super) struct KeepLine {
    /// Of which modality; empty for all that no other rule names.
    modality: String,
    /// After the final report, or after the reception of what was cancelled or refused.
    seconds: u64,
}

impl From<Keep> for KeepLine {
    fn from(keep: Keep) -> Self {
        Self { modality: keep.modality.into(), seconds: keep.ms / 1000 }
    }
}

/// The rules that somebody gives.
fn keeps(lines: &[KeepLine]) -> Result<Vec<Keep>, Problem> {
    if lines.len() > LIST_MAX {
        return Err(Problem::invalid(format!("retention: at most {LIST_MAX} rules")));
    }
    let mut keeps: Vec<Keep> = Vec::new();
    for line in lines {
        let modality = field("retention", Text8::new(line.modality.as_str()))?;
        if line.seconds == 0 || line.seconds > RETENTION_SECONDS_MAX {
            return Err(Problem::invalid(format!("retention: from 1 to {RETENTION_SECONDS_MAX} seconds")));
        }
        if keeps.iter().any(|keep| keep.modality == modality) {
            return Err(Problem::invalid("retention: one rule for a modality".to_owned()));
        }
        keeps.push(Keep { modality, ms: line.seconds * 1000 });
    }
    Ok(keeps)
}

impl HospitalLine {
    fn new(hospital: Hospital, names: &BTreeMap<SiteId, Name>) -> Self {
        let name = |site: &SiteId| names.get(site).map_or_else(|| site.to_string(), ToString::to_string);
        Self {
            name: hospital.name.into(),
            finess: hospital.finess.into(),
            territory: hospital.place.territory.into(),
            department: hospital.place.department.into(),
            region: hospital.place.region.into(),
            sites: hospital.sites.iter().map(name).collect(),
            regulate: hospital.regulate,
            retention: hospital.retention.into_iter().map(KeepLine::from).collect(),
        }
    }
}

fn names(view: &View<'_>) -> Result<BTreeMap<SiteId, Name>, maillage_consensus::machine::ApplyError> {
    Ok(view.sites()?.into_iter().map(|site| (site.id, site.description.name)).collect())
}

/// All partner hospitals.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Hospitals {
    /// By name.
    hospitals: Vec<HospitalLine>,
}

/// `GET /hospitals`
pub(super) async fn list(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<Hospitals>, Problem> {
    app.read(query.fresh, |view| {
        let names = names(view)?;
        let hospitals = view.hospitals()?.into_iter().map(|hospital| HospitalLine::new(hospital, &names));
        let mut hospitals: Vec<_> = hospitals.collect();
        hospitals.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Hospitals { hospitals })
    })
    .await
}

/// `GET /hospitals/{name}`
pub(super) async fn show(
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<HospitalLine>, Problem> {
    let read = app.read(query.fresh, |view| {
        let Some(hospital) = view.hospital(&name)? else { return Ok(None) };
        Ok(Some(HospitalLine::new(hospital, &names(view)?)))
    });
    read.await?.try_map(|shown| shown.ok_or_else(|| Problem::not_found("no hospital of this name is a partner")))
}

/// A partner hospital as it is to be from now on; what is not said is empty.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HospitalBody {
    /// Its number in the register of establishments.
    #[serde(default)]
    finess: String,
    /// The hospitals' group: its readers come first.
    #[serde(default)]
    territory: String,
    #[serde(default)]
    department: String,
    #[serde(default)]
    region: String,
    /// The names of the sites whose contract covers it; all by default.
    #[serde(default)]
    sites: Vec<String>,
    /// Whether its requests need a regulator, whatever they say themselves.
    #[serde(default)]
    regulate: bool,
    /// For how long its images are kept, when it is not as the policy says.
    #[serde(default)]
    retention: Vec<KeepLine>,
    #[serde(default)]
    user: String,
}

impl HospitalBody {
    fn hospital(self, name: &str, known: &[Site]) -> Result<Hospital, Problem> {
        if self.sites.len() > LIST_MAX {
            return Err(Problem::invalid(format!("sites: at most {LIST_MAX}")));
        }
        let mut sites = Vec::new();
        for name in &self.sites {
            let site = known.iter().find(|site| site.description.name.as_str() == name);
            let site = site.ok_or_else(|| Problem::invalid(format!("sites: no site is called {name:?}")))?;
            if !sites.contains(&site.id) {
                sites.push(site.id);
            }
        }
        Ok(Hospital {
            name: field("name", Line::filled(name))?,
            finess: field("finess", Text8::new(self.finess))?,
            place: Place {
                territory: field("territory", Name::new(self.territory.trim()))?,
                department: field("department", Name::new(self.department.trim()))?,
                region: field("region", Name::new(self.region.trim()))?,
            },
            sites,
            regulate: self.regulate,
            retention: keeps(&self.retention)?,
        })
    }
}

/// What was agreed on.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Agreed {
    done: bool,
}

/// `PUT /hospitals/{name}`
pub(super) async fn set(
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<HospitalBody>,
) -> Result<Json<Agreed>, Problem> {
    app.need_format(2)?;
    let user = field("user", Name::new(body.user.as_str()))?;
    let sites = app.node.read(|view| view.sites())?;
    let command = Command::SetHospital(body.hospital(&name, &sites)?);
    agree(&app.command(id, user, command).await?)
}

fn agree(outcome: &Outcome) -> Result<Json<Agreed>, Problem> {
    match outcome {
        Outcome::Done => Ok(Json(Agreed { done: true })),
        other => Err(unexpected(other)),
    }
}

/// What the mesh agrees on for its waiting room. Shares are of an exam's target, from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Policy")]
pub(super) struct PolicyLine {
    /// For so long an exam is kept for readers of the hospital's territory, while one is in session.
    kept_for_territory: f64,
    /// … of its department.
    kept_for_department: f64,
    /// … of its region.
    kept_for_region: f64,
    /// For so long an exam that needs an expert is kept for experts.
    kept_for_experts: f64,
    /// Seconds after which a critical result of which nobody was told escalates.
    critical_seconds: u64,
    /// For how long images are kept, where their hospital says nothing else; 90 days without any rule.
    #[serde(default)]
    retention: Vec<KeepLine>,
    /// For so long after their reception images are kept at least of which the report is still to be written or
    /// delivered; 180 days by default.
    #[serde(default = "unread_by_default")]
    unread_seconds: u64,
}

fn unread_by_default() -> u64 {
    Policy::default().unread_ms / 1000
}

impl From<Policy> for PolicyLine {
    fn from(policy: Policy) -> Self {
        let share = |thousandths: u16| f64::from(thousandths) / 1000.0;
        let [territory, department, region] = policy.kept_for.map(share);
        Self {
            kept_for_territory: territory,
            kept_for_department: department,
            kept_for_region: region,
            kept_for_experts: share(policy.kept_for_experts),
            critical_seconds: policy.critical_ms / 1000,
            retention: policy.retention.into_iter().map(KeepLine::from).collect(),
            unread_seconds: policy.unread_ms / 1000,
        }
    }
}

impl PolicyLine {
    fn policy(&self) -> Result<Policy, Problem> {
        let thousandths = |name: &str, share: f64| {
            if !(0.0..=1.0).contains(&share) {
                return Err(Problem::invalid(format!("{name}: must be from 0 to 1")));
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000")]
            Ok((share * 1000.0).round() as u16)
        };
        if !(CRITICAL_SECONDS_MIN..=CRITICAL_SECONDS_MAX).contains(&self.critical_seconds) {
            let (least, most) = (CRITICAL_SECONDS_MIN, CRITICAL_SECONDS_MAX);
            return Err(Problem::invalid(format!("critical_seconds: from {least} to {most}")));
        }
        let kept_for = [
            thousandths("kept_for_territory", self.kept_for_territory)?,
            thousandths("kept_for_department", self.kept_for_department)?,
            thousandths("kept_for_region", self.kept_for_region)?,
        ];
        if !kept_for.is_sorted() {
            return Err(Problem::invalid(
                "kept_for_…: the wider the circle, the longer: territory, department, region",
            ));
        }
        let kept_for_experts = thousandths("kept_for_experts", self.kept_for_experts)?;
        if self.unread_seconds == 0 || self.unread_seconds > RETENTION_SECONDS_MAX {
            return Err(Problem::invalid(format!("unread_seconds: from 1 to {RETENTION_SECONDS_MAX}")));
        }
        let retention = keeps(&self.retention)?;
        let (critical_ms, unread_ms) = (self.critical_seconds * 1000, self.unread_seconds * 1000);
        Ok(Policy { kept_for, kept_for_experts, critical_ms, retention, unread_ms })
    }
}

/// `GET /policy`
pub(super) async fn policy(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<PolicyLine>, Problem> {
    app.read(query.fresh, |view| Ok(view.policy()?.into())).await
}

/// A whole policy, and who sets it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyBody {
    policy: PolicyLine,
    #[serde(default)]
    user: String,
}

/// `PUT /policy`
pub(super) async fn set_policy(
    State(app): State<App>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<PolicyBody>,
) -> Result<Json<Agreed>, Problem> {
    app.need_format(2)?;
    let user = field("user", Name::new(body.user))?;
    agree(&app.command(id, user, Command::SetPolicy(body.policy.policy()?)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roster::testing::site;

    #[test]
    fn a_policy_is_what_it_was_after_it_was_shown_and_set() {
        let default = Policy::default();
        assert_eq!(PolicyLine::from(default.clone()).policy().expect("good"), default);
        let line = |change: fn(&mut PolicyLine)| {
            let mut line = PolicyLine::from(Policy::default());
            change(&mut line);
            line.policy().map_err(|problem| problem.detail().to_owned())
        };
        assert!(line(|line| line.kept_for_experts = 1.5).expect_err("refused").starts_with("kept_for_experts"));
        assert!(line(|line| line.kept_for_territory = f64::NAN).expect_err("refused").contains("from 0 to 1"));
        assert!(line(|line| line.kept_for_territory = 0.9).expect_err("refused").contains("the wider"));
        let twice = |line: &mut PolicyLine| {
            line.retention = vec![KeepLine { modality: "CT".to_owned(), seconds: 9 }; 2];
        };
        assert!(line(twice).expect_err("refused").contains("one rule"));
        assert!(line(|line| line.unread_seconds = 0).expect_err("refused").starts_with("unread_seconds"));
        assert!(line(|line| line.critical_seconds = 59).expect_err("refused").starts_with("critical_seconds"));
    }

    #[test]
    fn a_contract_names_sites_that_there_are() {
        let body = |sites: &[&str]| HospitalBody {
            finess: String::new(),
            territory: " ght-nord ".to_owned(),
            department: String::new(),
            region: String::new(),
            sites: sites.iter().map(|name| (*name).to_owned()).collect(),
            regulate: true,
            retention: Vec::new(),
            user: String::new(),
        };
        let known = [site(1, "a"), site(7, "b")];
        let hospital = body(&["site-7", "site-7"]).hospital("CH Nord", &known).expect("good");
        assert_eq!((hospital.sites, hospital.place.territory), (vec![SiteId(7)], Name::fitted("ght-nord")));
        let error = body(&["site-9"]).hospital("CH Nord", &known).expect_err("refused");
        assert!(error.detail().contains("no site is called \"site-9\""));
        assert_eq!(body(&[]).hospital(" ", &known).expect_err("refused").code(), "invalid");
    }
}
