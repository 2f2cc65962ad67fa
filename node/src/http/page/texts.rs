//! Every text of the page, in French and in English, side by side.

use axum::http::{HeaderMap, header};
use maillage_consensus::exam::{ExamState, Priority, Skipped, Unsolicited};

use crate::http::media::MediaType;

/// A language of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    /// The default: the service is French.
    French,
    /// The other.
    English,
}

impl Language {
    /// The query's, else the browser's best, else French.
    pub(super) fn choose(query: Option<&str>, headers: &HeaderMap) -> Self {
        query.and_then(Self::from_code).unwrap_or_else(|| {
            let accepted = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
            accepted.map_or(Self::French, Self::best)
        })
    }

    /// From `fr`, `en`, and their regions.
    pub(super) fn from_code(code: &str) -> Option<Self> {
        match code.split('-').next()?.trim().to_ascii_lowercase().as_str() {
            "fr" => Some(Self::French),
            "en" => Some(Self::English),
            _ => None,
        }
    }

    fn best(accepted: &str) -> Self {
        let mut best = (0, Self::French);
        for range in accepted.split(',') {
            let Some(language) = range.split(';').next().and_then(Self::from_code) else { continue };
            // A language range weighs as a media range does.
            let weight = range.split_once(';').map_or(Some(1000), |(_, weight)| {
                MediaType::parse(&format!("language/any;{weight}")).map(|range| range.weight())
            });
            if let Some(weight) = weight.filter(|weight| *weight > best.0) {
                best = (weight, language);
            }
        }
        best.1
    }

    /// Its code.
    pub(super) fn code(self) -> &'static str {
        self.pick("fr", "en")
    }

    /// The other one.
    pub(super) fn other(self) -> Self {
        self.pick(Self::English, Self::French)
    }

    fn pick<T>(self, french: T, english: T) -> T {
        match self {
            Self::French => french,
            Self::English => english,
        }
    }

    /// A text.
    pub(super) fn say(self, text: Text) -> &'static str {
        let (french, english) = text.both();
        self.pick(french, english)
    }

    /// A priority's name.
    pub(super) fn priority(self, priority: Priority) -> &'static str {
        match priority {
            Priority::Vital => self.pick("vitale", "vital"),
            Priority::Urgent => self.pick("urgente", "urgent"),
            Priority::SemiUrgent => self.pick("semi-urgente", "semi-urgent"),
            Priority::Scheduled => self.pick("programmée", "scheduled"),
        }
    }

    /// A state's name.
    pub(super) fn state(self, state: ExamState) -> &'static str {
        match state {
            ExamState::Requested => self.pick("demandé", "requested"),
            ExamState::Waiting => self.pick("en attente", "waiting"),
            ExamState::Claimed => self.pick("pris", "claimed"),
            ExamState::Reported => self.pick("compte rendu fait", "reported"),
            ExamState::Cancelled => self.pick("annulé", "cancelled"),
            ExamState::Validated => self.pick("validé", "validated"),
            ExamState::Acquiring => self.pick("en acquisition", "being acquired"),
            ExamState::Receiving => self.pick("images en cours d’arrivée", "images arriving"),
            ExamState::Reading => self.pick("en lecture", "being read"),
            ExamState::Delivered => self.pick("compte rendu remis", "delivered"),
            ExamState::FollowedUp => self.pick("suivi", "followed up"),
            ExamState::Purged => self.pick("images purgées", "images purged"),
            ExamState::Refused => self.pick("refusé", "refused"),
        }
    }

    /// How far a break glass is.
    pub(super) fn glass(self, state: &'static str) -> &'static str {
        match state {
            "held" => self.pick("en lecture", "being read"),
            "queued" => self.pick("à envoyer", "to be sent"),
            "accepted" => self.pick("compte rendu accepté", "report accepted"),
            "second-read" => self.pick("lu ailleurs aussi", "read elsewhere too"),
            "continues" => self.pick("prise ordinaire", "an ordinary claim now"),
            "given-back" => self.pick("rendu", "given back"),
            "failed" => self.pick("refusé : voir la boîte d’envoi", "refused: see the outbox"),
            other => other,
        }
    }

    /// Why images stand apart from any request.
    pub(super) fn unsolicited(self, reason: Unsolicited) -> &'static str {
        let french = match reason {
            Unsolicited::NoRequest => "aucune demande n’a ce numéro et ce patient",
            Unsolicited::OtherPatient => "la demande de ce numéro nomme un autre patient",
            Unsolicited::Ambiguous => "plusieurs demandes correspondent",
            Unsolicited::NoIdentifiers => "les images n’ont pas de numéro ou pas d’identifiant de patient",
        };
        self.pick(french, reason.as_str())
    }

    /// A step that an emergency left out.
    pub(super) fn skipped(self, step: Skipped) -> &'static str {
        match step {
            Skipped::RequestBeforeImages => self.pick("images avant la demande", "images before the request"),
            Skipped::Regulation => self.pick("régulation", "regulation"),
            Skipped::Consent => self.pick("consentement", "consent"),
            Skipped::RegulationBeforeAcquisition => {
                self.pick("régulation avant l’acquisition", "regulation before acquisition")
            }
        }
    }

    /// A site's role.
    pub(super) fn role(self, role: &'static str) -> &'static str {
        match role {
            "leader" => self.pick("meneur", "leader"),
            "voter" => self.pick("votant", "voter"),
            "learner" => self.pick("sans vote", "learner"),
            _ => "–",
        }
    }
}

macro_rules! texts {
    ($($name:ident: $french:literal, $english:literal;)*) => {
        /// A text of the page.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Text {
            $(#[doc = $english] $name,)*
        }

        impl Text {
            fn both(self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$name => ($french, $english),)*
                }
            }
        }
    };
}

texts! {
    Title: "Salle d’attente", "Waiting room";
    SkipToRoom: "Aller à la salle d’attente", "Skip to the waiting room";
    ReadingSite: "Centre", "Site";
    ReaderPrompt: "Votre nom", "Your name";
    ReaderSet: "Valider", "Set";
    ReaderNeeded: "Indiquez votre nom pour prendre un examen.", "Give your name to take an exam.";
    Next: "Examen suivant", "Next exam";
    Claim: "Prendre", "Claim";
    Release: "Rendre", "Release";
    ReleaseReason: "Raison (facultative)", "Reason (optional)";
    Report: "Compte rendu", "Report";
    ReportSend: "Signer le compte rendu", "Sign the report";
    Retry: "Réessayer", "Try again";
    WhatYouTyped: "Votre texte", "Your text";
    Back: "Retour à la salle d’attente", "Back to the waiting room";
    WaitingExams: "Examens en attente", "Exams waiting";
    NothingWaits: "Aucun examen n’attend.", "No exam is waiting.";
    NotShown: "autres examens ne sont pas affichés", "more exams are not shown";
    ReadingExams: "En lecture et récents", "Being read and recent";
    NobodyReads: "Personne ne lit pour l’instant.", "Nobody is reading at the moment.";
    Priority: "Priorité", "Priority";
    TimeLeft: "Temps restant", "Time left";
    State: "État", "State";
    Patient: "Patient", "Patient";
    Modality: "Modalité", "Modality";
    Description: "Examen", "Exam";
    Hospital: "Hôpital", "Hospital";
    Received: "Reçu", "Received";
    Images: "Images", "Images";
    ImagesHere: "ici", "here";
    ImagesElsewhere: "ailleurs", "elsewhere";
    ImagesNone: "aucune", "none";
    CopiesOf: "copies", "copies";
    ReaderColumn: "Lecteur", "Reader";
    Since: "depuis", "since";
    Actions: "Actions", "Actions";
    Late: "retard", "late";
    Unsolicited: "À rapprocher", "To reconcile";
    CriticalOpen: "résultat critique : personne n’est prévenu", "critical result: nobody has been told";
    ReadTwice: "lu deux fois", "read twice";
    Skipped: "Urgence, étapes omises", "Emergency, steps left out";
    ImagesAfterReport: "images arrivées après le compte rendu", "images came after the report";
    Mesh: "Maillage", "Mesh";
    Quorum: "Quorum", "Quorum";
    QuorumReached: "atteint", "reached";
    QuorumLost: "non atteint", "not reached";
    Voters: "votants joignables", "voters reached";
    Leader: "Meneur", "Leader";
    NoLeader: "inconnu", "unknown";
    Site: "Site", "Site";
    Zone: "Zone", "Zone";
    Role: "Rôle", "Role";
    Link: "Liaison", "Link";
    LinkOwn: "ce site", "this site";
    LinkUp: "relié", "connected";
    LinkDown: "injoignable", "unreachable";
    RoundTrip: "Aller-retour", "Round trip";
    BelowTwo: "études sur moins de deux sites", "studies on fewer than two sites";
    CutOffSince: "Coupé des autres sites depuis", "Cut off from the other sites since";
    CutOffNever: "Pas encore de contact avec les autres sites", "No contact with the other sites yet";
    CutOffMeaning: "la lecture continue, les prises attendent, les comptes rendus sont gardés ici et envoyés ensuite.",
        "reading continues, claims wait, reports are kept here and sent afterwards.";
    LinkLost: "Le lien avec le nœud est perdu : ce qui est affiché peut être dépassé.",
        "The link with the node is lost: what is shown may be out of date.";
    ClaimLost: "Vous n’avez plus l’examen", "You no longer have exam";
    ClaimLostBy: "pris par", "taken by";
    ClaimLostWhy: "raison :", "reason:";
    ClaimLostMeaning: "Ce que vous signeriez maintenant serait gardé comme brouillon.",
        "What you would sign now would be kept as a draft.";
    ClaimLostSeen: "Vu", "Seen";
    AsOf: "état à", "as of";
    DoneClaimed: "Examen pris :", "Exam claimed:";
    DoneReleased: "Examen rendu :", "Exam released:";
    DoneReported: "Compte rendu enregistré pour l’examen", "Report recorded for exam";
    DoneQueued: "Compte rendu gardé sur ce site et envoyé dès que le contact revient, examen",
        "Report kept on this site and sent when contact is back, exam";
    DoneGlass: "Pris par bris de glace ; les autres sites le sauront dès que le contact revient. Examen",
        "Taken by break glass; the other sites will know when contact is back. Exam";
    Glass: "bris de glace", "break glass";
    GlassTake: "Bris de glace", "Break glass";
    GlassReason: "Raison (un autre site lit peut-être cet examen)", "Reason (another site may be reading this exam)";
    FailedQuorum: "Le contact est revenu : prenez l’examen normalement.", "Contact is back: claim the exam normally.";
    DoneNothing: "Aucun examen n’attend.", "No exam is waiting.";
    DoneReader: "Nom enregistré.", "Name set.";
    FailedHeld: "Déjà pris par", "Already claimed by";
    FailedAt: "à", "at";
    FailedStale: "Cette prise n’est plus valable. Le texte est gardé comme brouillon n°",
        "This claim no longer holds. The text is kept as draft no.";
    FailedStaleNoDraft: "Cette prise n’est plus valable.", "This claim no longer holds.";
    FailedNoQuorum: "Pas de quorum : rien n’a été changé. Réessayez dès que le contact revient.",
        "No quorum: nothing was changed. Try again as soon as contact is back.";
    FailedUnknown: "Résultat inconnu : réessayez, ce ne sera pas fait deux fois.",
        "Outcome unknown: try again, it will not be done twice.";
    FailedState: "L’état de l’examen ne le permet plus.", "The exam’s state does not allow it any more.";
    FailedOther: "Cela n’a pas été fait :", "It was not done:";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(query: Option<&str>, accepted: &str) -> Language {
        let headers = HeaderMap::from_iter([(header::ACCEPT_LANGUAGE, accepted.parse().expect("a header"))]);
        Language::choose(query, &headers)
    }

    #[test]
    fn french_comes_first_and_the_reader_decides() {
        assert_eq!(Language::choose(None, &HeaderMap::new()), Language::French);
        assert_eq!(chosen(None, "de, es;q=0.5"), Language::French);
        assert_eq!(chosen(None, "en-GB,en;q=0.9,fr;q=0.8"), Language::English);
        assert_eq!(chosen(None, "fr-FR;q=0.9, en;q=0.9"), Language::French);
        assert_eq!(chosen(None, "fr;q=0, en;q=0.1"), Language::English);
        assert_eq!(chosen(Some("fr"), "en"), Language::French);
        assert_eq!(chosen(Some("xx"), "en"), Language::English);
    }
}
