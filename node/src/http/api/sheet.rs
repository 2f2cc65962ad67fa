//! One exam whole: what was decided of it, its workitems, its reports with the state of their signatures,
//! and everything that was said of it.

use maillage_consensus::View;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::{Exam, Regulation, Report, Verdict, Workitem};
use maillage_consensus::ids::{Name, SiteId};
use maillage_consensus::machine::ApplyError;
use maillage_consensus::remark::{Remark, Told, What};
use schemars::JsonSchema;
use serde::Serialize;

use super::retention::RetentionLine;
use crate::http::rfc3339::At;
use crate::http::signing::{self, Signature};
use crate::http::summary::{ClaimLine, ExamLine, Summaries};
use crate::http::words::spelled;

/// One exam whole.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ExamSheet")]
pub(super) struct ExamSheet {
    #[serde(flatten)]
    pub(super) line: ExamLine,
    /// What a regulator decided.
    regulation: Option<RegulationLine>,
    /// First to last.
    workitems: Vec<WorkitemLine>,
    /// First to last, drafts under lost claims included.
    report_list: Vec<ReportLine>,
    /// What was said of it, first to last.
    remarks: Vec<RemarkLine>,
    /// How long its images stay, and what became of them.
    retention: RetentionLine,
}

/// What a regulator decided.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Regulation")]
struct RegulationLine {
    /// `validated` or `refused`.
    verdict: &'static str,
    /// By which it is to be acquired, when validated.
    protocol: Option<String>,
    /// Why it was refused.
    reason: Option<String>,
    #[serde(flatten)]
    by: By,
}

/// Who did something, where and when.
#[derive(Debug, Serialize, JsonSchema)]
struct By {
    user: String,
    site: u64,
    site_name: String,
    at: At,
}

impl By {
    fn new(user: &Name, site: SiteId, at: UnixMillisField, summaries: &Summaries<'_>) -> Self {
        Self { user: user.to_string(), site: site.0, site_name: summaries.name(site).into(), at: At(at) }
    }
}

/// A workitem, as a Unified Procedure Step.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Workitem")]
struct WorkitemLine {
    /// Within the exam, from 1.
    number: u32,
    /// `read`, `regulate`, `second-opinion`, `analyse` or `deliver`.
    kind: &'static str,
    /// `SCHEDULED`, `IN_PROGRESS`, `CANCELED` or `COMPLETED`.
    state: String,
    /// Its SOP Instance UID, if a client chose it.
    uid: Option<String>,
    /// Who is asked for; null for anybody.
    asked: Option<String>,
    /// The workitem that this one replaces.
    replaces: Option<u32>,
    performer: Option<ClaimLine>,
    /// Why it was canceled, or how it was done.
    reason: String,
    /// When it got into this state.
    at: At,
    /// Who asked its performer to stop.
    cancel_asked: Option<CancelLine>,
}

/// A request to stop.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CancelAsked")]
struct CancelLine {
    by: String,
    reason: String,
    at: At,
}

/// A report, never replaced.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Report")]
struct ReportLine {
    /// Within the exam, from 1.
    number: u32,
    /// `preliminary`, `final`, `addendum` or `second-read`.
    kind: &'static str,
    text: String,
    #[serde(flatten)]
    by: By,
    /// The token it was signed under; on the unix socket only.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<u64>,
    /// Whether that no longer held: the text is a draft.
    stale: bool,
    /// The signature of the site's node, checked now.
    signature: Signature,
}

/// Something said of an exam.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Remark")]
pub(super) struct RemarkLine {
    /// Within the exam, from 1.
    number: u32,
    #[serde(flatten)]
    by: By,
    #[serde(flatten)]
    what: WhatLine,
}

/// What is said.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[schemars(rename = "RemarkKind")]
enum WhatLine {
    /// From centre to centre.
    Note { text: String },
    /// A second opinion, with the answer once it is given.
    Opinion {
        /// Whom it is asked of; null for anybody.
        of: Option<String>,
        question: String,
        workitem: u32,
        answer: Option<AnswerLine>,
    },
    /// An algorithm's result.
    Finding {
        algorithm: String,
        version: String,
        finding: String,
        /// From 0 to 1.
        score: f64,
        location: String,
        /// The urgency that it asks for.
        priority: Option<&'static str>,
    },
    /// A result of which somebody must be told at once.
    Critical {
        text: String,
        /// When it escalates, unless somebody is told.
        due_at: At,
        escalated: u32,
        told: Option<ToldLine>,
    },
    /// Two readings differ.
    Discrepancy {
        /// 1 none, 2 minor, 3 major, 4 vital.
        grade: u8,
        text: String,
        told: Option<ToldLine>,
    },
    /// What became of the patient.
    FollowUp { text: String },
}

/// A second opinion given.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Answer")]
struct AnswerLine {
    #[serde(flatten)]
    by: By,
    text: String,
    /// `agrees`, `differs-minor` or `differs-major`.
    concordance: String,
}

/// Who was told.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Told")]
struct ToldLine {
    whom: String,
    /// By whom.
    user: String,
    at: At,
    read_back: bool,
}

impl ExamSheet {
    /// All of `exam`.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(super) fn gather(
        view: &View<'_>,
        summaries: &Summaries<'_>,
        exam: Exam,
        now: UnixMillisField,
    ) -> Result<Self, ApplyError> {
        let id = exam.id;
        let mesh = view.mesh()?.map_or([0; 32], |mesh| mesh.id);
        let mut report_list = Vec::new();
        for report in view.reports(id)? {
            let signature = signing::check(view, &mesh, &report)?;
            report_list.push(ReportLine::new(report, signature, summaries));
        }
        Ok(Self {
            regulation: exam.course.regulation.as_ref().map(|regulation| RegulationLine::new(regulation, summaries)),
            workitems: view.workitems(id)?.iter().map(|item| WorkitemLine::new(item, summaries)).collect(),
            report_list,
            remarks: view.remarks(id)?.into_iter().map(|remark| RemarkLine::new(remark, summaries)).collect(),
            retention: RetentionLine::gather(view, summaries, &exam)?,
            line: summaries.of(exam)?.line(now),
        })
    }
}

impl RegulationLine {
    fn new(regulation: &Regulation, summaries: &Summaries<'_>) -> Self {
        let (verdict, protocol, reason) = match &regulation.verdict {
            Verdict::Validated { protocol } => ("validated", Some(protocol.to_string()), None),
            Verdict::Refused { reason } => ("refused", None, Some(reason.to_string())),
        };
        let by = By::new(&regulation.user, regulation.site, regulation.at, summaries);
        Self { verdict, protocol, reason, by }
    }
}

impl WorkitemLine {
    fn new(workitem: &Workitem, summaries: &Summaries<'_>) -> Self {
        let step = &workitem.step;
        let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            number: workitem.number,
            kind: step.kind.as_str(),
            state: spelled(&workitem.state),
            uid: said(step.uid.as_str()),
            asked: said(step.asked.as_str()),
            replaces: step.replaces,
            performer: workitem.performer.as_ref().map(|claim| summaries.claim(claim)),
            reason: workitem.reason.to_string(),
            at: At(workitem.at),
            cancel_asked: step.cancel_asked.as_ref().map(|asked| CancelLine {
                by: asked.by.to_string(),
                reason: asked.reason.to_string(),
                at: At(asked.at),
            }),
        }
    }
}

impl ReportLine {
    fn new(report: Report, signature: Signature, summaries: &Summaries<'_>) -> Self {
        Self {
            number: report.number,
            kind: report.signed.kind.as_str(),
            text: report.text.into(),
            by: By::new(&report.user, report.site, report.at, summaries),
            token: summaries.proofs().then_some(report.token.0),
            stale: report.stale,
            signature,
        }
    }
}

impl RemarkLine {
    /// A remark with the names of its sites.
    pub(super) fn new(remark: Remark, summaries: &Summaries<'_>) -> Self {
        let by = |user: &Name, site, at| By::new(user, site, at, summaries);
        let what = match remark.what {
            What::Note(text) => WhatLine::Note { text: text.into() },
            What::FollowUp(text) => WhatLine::FollowUp { text: text.into() },
            What::Opinion(opinion) => WhatLine::Opinion {
                of: (!opinion.of.is_empty()).then(|| opinion.of.into()),
                question: opinion.question.into(),
                workitem: opinion.workitem,
                answer: opinion.answer.map(|answer| AnswerLine {
                    by: by(&answer.user, answer.site, answer.at),
                    text: answer.text.into(),
                    concordance: spelled(&answer.concordance),
                }),
            },
            What::Finding(finding) => WhatLine::Finding {
                algorithm: finding.algorithm.into(),
                version: finding.version.into(),
                finding: finding.finding.into(),
                score: f64::from(finding.score) / 1000.0,
                location: finding.location.into(),
                priority: finding.priority.map(maillage_consensus::exam::Priority::as_str),
            },
            What::Critical(critical) => WhatLine::Critical {
                text: critical.text.into(),
                due_at: At(critical.due_at),
                escalated: critical.escalated,
                told: critical.told.map(ToldLine::from),
            },
            What::Discrepancy(discrepancy) => WhatLine::Discrepancy {
                grade: discrepancy.grade,
                text: discrepancy.text.into(),
                told: discrepancy.told.map(ToldLine::from),
            },
        };
        Self { number: remark.number, by: by(&remark.user, remark.site, remark.at), what }
    }
}

impl From<Told> for ToldLine {
    fn from(told: Told) -> Self {
        Self { whom: told.whom.into(), user: told.user.into(), at: At(told.at), read_back: told.read_back }
    }
}
