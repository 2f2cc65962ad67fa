//! The kinds of exams: how often, how long to scan and to read, how large.

use super::parameters::{Basis, Given};

/// A kind of exam.
#[derive(Debug, Clone)]
pub struct Kind {
    /// For people.
    pub name: &'static str,
    /// Modality (0008,0060).
    pub modality: &'static str,
    /// Its share among exams of its discipline.
    pub share: f64,
    /// Mean reading time, from claim to signed report.
    pub reading_min: Given<f64>,
    /// Mean time on the scanner, in minutes.
    pub scan_min: f64,
    /// The fewest and the most images (slices) of a study; drawn evenly between.
    pub images: (u64, u64),
    /// Size of one image, in MB.
    pub image_mb: f64,
    /// Shares of the urgencies, in the order of `Priority::ALL`.
    pub urgency: [f64; 4],
    /// What reports of it conclude; one is drawn.
    pub conclusions: &'static [&'static str],
}

const DICTATION: &str = "mean dictation time by type, published over 106,127 on-call exams";
const SLICE_MB: f64 = 0.5;

const fn published(value: f64) -> Given<f64> {
    Given { value, unit: "min", basis: Basis::Published, source: DICTATION }
}

const fn assumed(value: f64, source: &'static str) -> Given<f64> {
    Given { value, unit: "min", basis: Basis::Assumption, source }
}

/// What on-call radiologists read. Shares and urgencies are assumptions, after ECR 2012 C-1606 (half of tele-
/// radiology's CT are heads, a quarter abdomens), with some MR and radiographs beside them.
pub(super) fn radiology() -> Vec<Kind> {
    vec![
        Kind {
            name: "CT head",
            modality: "CT",
            share: 0.36,
            reading_min: published(16.0),
            scan_min: 6.0,
            images: (200, 600),
            image_mb: SLICE_MB,
            urgency: [0.22, 0.58, 0.19, 0.01],
            conclusions: &[
                "No intracranial haemorrhage.",
                "Left middle cerebral artery occlusion.",
                "Subdural haematoma, 9 mm.",
            ],
        },
        Kind {
            name: "CT chest",
            modality: "CT",
            share: 0.11,
            reading_min: published(15.8),
            scan_min: 7.0,
            images: (300, 900),
            image_mb: SLICE_MB,
            urgency: [0.12, 0.63, 0.24, 0.01],
            conclusions: &["No pulmonary embolism.", "Segmental pulmonary embolism, right lower lobe."],
        },
        Kind {
            name: "CT abdomen and pelvis",
            modality: "CT",
            share: 0.22,
            reading_min: published(17.9),
            scan_min: 8.0,
            images: (400, 1_000),
            image_mb: SLICE_MB,
            urgency: [0.06, 0.62, 0.31, 0.01],
            conclusions: &[
                "Acute appendicitis, uncomplicated.",
                "No acute finding.",
                "Sigmoid diverticulitis, no abscess.",
            ],
        },
        Kind {
            name: "CT polytrauma",
            modality: "CT",
            share: 0.02,
            reading_min: published(39.0),
            scan_min: 15.0,
            images: (1_000, 1_500),
            image_mb: SLICE_MB,
            urgency: [1.0, 0.0, 0.0, 0.0],
            conclusions: &["Splenic laceration grade III; no bleeding elsewhere.", "No traumatic lesion."],
        },
        Kind {
            name: "CT spine and limbs",
            modality: "CT",
            share: 0.08,
            reading_min: assumed(11.0, "such that the CT together have that publication's mean of 16.6"),
            scan_min: 6.0,
            images: (200, 600),
            image_mb: SLICE_MB,
            urgency: [0.02, 0.45, 0.50, 0.03],
            conclusions: &["No fracture.", "Burst fracture of L1, no recoil."],
        },
        Kind {
            name: "MR head and spine",
            modality: "MR",
            share: 0.07,
            reading_min: assumed(17.0, "as a CT of the head, with more sequences"),
            scan_min: 22.0,
            images: (200, 800),
            image_mb: SLICE_MB,
            urgency: [0.30, 0.45, 0.20, 0.05],
            conclusions: &["No diffusion restriction.", "Cauda equina compression at L4-L5."],
        },
        Kind {
            name: "Radiograph",
            modality: "DX",
            share: 0.14,
            reading_min: assumed(6.0, "the shortest readings"),
            scan_min: 5.0,
            images: (2, 4),
            image_mb: 8.0,
            urgency: [0.02, 0.28, 0.62, 0.08],
            conclusions: &["No fracture.", "Fracture of the distal radius."],
        },
    ]
}

/// What nuclear physicians read.
pub(super) fn nuclear() -> Vec<Kind> {
    vec![
        Kind {
            name: "PET/CT",
            modality: "PT",
            share: 0.6,
            reading_min: assumed(20.0, "whole body, compared with earlier ones"),
            scan_min: 25.0,
            images: (600, 3_000),
            image_mb: SLICE_MB,
            urgency: [0.0, 0.0, 0.05, 0.95],
            conclusions: &["No hypermetabolic lesion.", "Partial metabolic response."],
        },
        Kind {
            name: "Scintigraphy",
            modality: "NM",
            share: 0.4,
            reading_min: assumed(10.0, "few images"),
            scan_min: 30.0,
            images: (20, 200),
            image_mb: SLICE_MB,
            urgency: [0.0, 0.10, 0.20, 0.70],
            conclusions: &["No perfusion mismatch.", "Uptake at the left hip, likely fracture."],
        },
    ]
}

/// The mean and the coefficient of variation of the reading time over a mix of kinds, in minutes, when each
/// kind is log-normal with the coefficient `cv`.
pub(super) fn reading(kinds: &[Kind], cv: f64) -> (f64, f64) {
    let total: f64 = kinds.iter().map(|kind| kind.share).sum();
    let mean = kinds.iter().map(|kind| kind.share * kind.reading_min.value).sum::<f64>() / total;
    let square =
        kinds.iter().map(|kind| kind.share * kind.reading_min.value.powi(2) * (1.0 + cv * cv)).sum::<f64>() / total;
    (mean, (square / (mean * mean) - 1.0).sqrt())
}

#[cfg(test)]
mod tests {
    use super::{nuclear, radiology, reading};

    #[test]
    fn shares_of_kinds_and_urgencies_are_whole() {
        for kinds in [radiology(), nuclear()] {
            let total: f64 = kinds.iter().map(|kind| kind.share).sum();
            assert!((total - 1.0).abs() < 1e-9, "{total}");
            for kind in kinds {
                assert!((kind.urgency.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{}", kind.name);
            }
        }
    }

    #[test]
    fn ct_together_take_the_published_mean() {
        let ct: Vec<_> = radiology().into_iter().filter(|kind| kind.modality == "CT").collect();
        let (mean, _) = reading(&ct, 0.6);
        assert!((mean - 16.6).abs() < 0.15, "{mean}");
    }
}
