//! CT studies of a head that nobody has: for demonstrations, tests and benchmarks.
//!
//! Ellipsoids of plausible densities, a fresh haemorrhage among them, under noise that is as strong
//! and as correlated as a scanner's, so that the images compress and look as real ones do. The same
//! settings give the same bytes on every machine.

mod noise;
mod shape;

use bytes::{BufMut, Bytes, BytesMut};
use dicom_core::value::PrimitiveValue;
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use dicom_transfer_syntax_registry::entries::EXPLICIT_VR_LITTLE_ENDIAN;

use crate::uid::Uid;

/// Longest text of VR LO and of a component group of VR PN, PS3.5 section 6.2.
const TEXT_LEN_MAX: usize = 64;
/// Side of the field of view in millimetres.
const FIELD_OF_VIEW_MM: f64 = 250.0;
/// Height of the scanned part of the head in millimetres.
const SCAN_LEN_MM: f64 = 170.0;
/// Stored value of 0 HU, negated: Rescale Intercept (0028,1052).
pub const RESCALE_INTERCEPT: i16 = -1024;

/// The settings of a phantom study: one series of axial slices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CtPhantom {
    /// Number of slices.
    pub slices: u32,
    /// Rows of a slice.
    pub rows: u16,
    /// Columns of a slice.
    pub columns: u16,
    /// Seed of the noise and of the UIDs.
    pub seed: u64,
    /// Patient ID; cut to 64 characters, as all texts.
    pub patient_id: String,
    /// Patient's name, with carets.
    pub patient_name: String,
    /// Accession number; cut to 16 characters.
    pub accession_number: String,
    /// Study Instance UID; derived from the other settings when `None`.
    pub study_uid: Option<Uid>,
}

impl Default for CtPhantom {
    fn default() -> Self {
        Self {
            slices: 300,
            rows: 512,
            columns: 512,
            seed: 1,
            patient_id: "PHANTOM-1".to_owned(),
            patient_name: "PHANTOM^HEAD".to_owned(),
            accession_number: "PHANTOM0001".to_owned(),
            study_uid: None,
        }
    }
}

impl CtPhantom {
    /// SOP class of the slices.
    pub const SOP_CLASS: Uid = Uid::CT_IMAGE_STORAGE;
    /// Transfer syntax of the data sets.
    pub const TRANSFER_SYNTAX: Uid = Uid::EXPLICIT_LE;

    /// Study Instance UID.
    pub fn study_uid(&self) -> Uid {
        self.study_uid.clone().unwrap_or_else(|| self.derive("study", &self.accession_number))
    }

    /// Series Instance UID.
    pub fn series_uid(&self) -> Uid {
        self.derive("series", self.study_uid().as_str())
    }

    /// SOP Instance UID of slice `n`, from 0.
    pub fn sop_instance_uid(&self, n: u32) -> Uid {
        self.derive("instance", &format!("{}/{n}", self.series_uid()))
    }

    /// Slice `n`, from 0, feet first: its SOP Instance UID and its data set.
    pub fn slice(&self, n: u32) -> (Uid, Bytes) {
        let sop_instance = self.sop_instance_uid(n);
        let head = self.head(n, &sop_instance);
        let pixels_len = 2 * usize::from(self.rows) * usize::from(self.columns);
        let mut dataset = BytesMut::with_capacity(head.len() + 12 + pixels_len);
        dataset.put_slice(&head);
        dataset.put_slice(b"\xE0\x7F\x10\x00OW\0\0");
        dataset.put_u32_le(u32::try_from(pixels_len).unwrap_or(u32::MAX));
        self.put_pixels(n, &mut dataset);
        (sop_instance, dataset.freeze())
    }

    fn derive(&self, what: &str, from: &str) -> Uid {
        Uid::derived(format!("phantom {what} {} {} {from}", self.seed, self.patient_id).as_bytes())
    }

    /// Height of slice `n` above the scan's middle, in millimetres.
    fn height_mm(&self, n: u32) -> f64 {
        (f64::from(n) + 0.5) * self.spacing_mm() - SCAN_LEN_MM / 2.0
    }

    fn spacing_mm(&self) -> f64 {
        SCAN_LEN_MM / f64::from(self.slices.max(1))
    }

    /// The data set without its pixels, encoded.
    fn head(&self, n: u32, sop_instance: &Uid) -> Vec<u8> {
        let mut object = InMemDicomObject::new_empty();
        self.put_identity(&mut object, n, sop_instance);
        self.put_image(&mut object, n);
        let mut head = Vec::with_capacity(2048);
        object
            .write_dataset_with_ts(&mut head, &EXPLICIT_VR_LITTLE_ENDIAN.erased())
            .expect("short texts and numbers can be written to memory");
        head
    }

    /// Patient, study, series and equipment: PS3.3 sections C.7.1 to C.7.5.
    fn put_identity(&self, object: &mut InMemDicomObject, n: u32, sop_instance: &Uid) {
        let texts = [
            (tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192".to_owned()),
            (tags::SOP_CLASS_UID, VR::UI, Self::SOP_CLASS.to_string()),
            (tags::SOP_INSTANCE_UID, VR::UI, sop_instance.to_string()),
            (tags::STUDY_DATE, VR::DA, "20250314".to_owned()),
            (tags::SERIES_DATE, VR::DA, "20250314".to_owned()),
            (tags::STUDY_TIME, VR::TM, "031500".to_owned()),
            (tags::SERIES_TIME, VR::TM, "031600".to_owned()),
            (tags::ACCESSION_NUMBER, VR::SH, clean(&self.accession_number, 16)),
            (tags::MODALITY, VR::CS, "CT".to_owned()),
            (tags::MANUFACTURER, VR::LO, "Maillage".to_owned()),
            (tags::INSTITUTION_NAME, VR::LO, "Phantom hospital".to_owned()),
            (tags::REFERRING_PHYSICIAN_NAME, VR::PN, "PHANTOM^EMERGENCY".to_owned()),
            (tags::STATION_NAME, VR::SH, "PHANTOM".to_owned()),
            (tags::STUDY_DESCRIPTION, VR::LO, "CT head, phantom".to_owned()),
            (tags::SERIES_DESCRIPTION, VR::LO, "Axial, no contrast".to_owned()),
            (tags::MANUFACTURER_MODEL_NAME, VR::LO, "Phantom".to_owned()),
            (tags::PATIENT_NAME, VR::PN, clean(&self.patient_name, TEXT_LEN_MAX)),
            (tags::PATIENT_ID, VR::LO, clean(&self.patient_id, TEXT_LEN_MAX)),
            (tags::PATIENT_BIRTH_DATE, VR::DA, "19700101".to_owned()),
            (tags::PATIENT_SEX, VR::CS, "O".to_owned()),
            (tags::BODY_PART_EXAMINED, VR::CS, "HEAD".to_owned()),
            (tags::PATIENT_POSITION, VR::CS, "HFS".to_owned()),
            (tags::STUDY_INSTANCE_UID, VR::UI, self.study_uid().to_string()),
            (tags::SERIES_INSTANCE_UID, VR::UI, self.series_uid().to_string()),
            (tags::STUDY_ID, VR::SH, "1".to_owned()),
            (tags::SERIES_NUMBER, VR::IS, "2".to_owned()),
            (tags::INSTANCE_NUMBER, VR::IS, (u64::from(n) + 1).to_string()),
            (tags::FRAME_OF_REFERENCE_UID, VR::UI, self.derive("frame", self.study_uid().as_str()).to_string()),
            (tags::POSITION_REFERENCE_INDICATOR, VR::LO, String::new()),
        ];
        for (tag, vr, text) in texts {
            object.put(DataElement::new(tag, vr, PrimitiveValue::from(text)));
        }
    }

    /// Image plane, pixels and CT image: PS3.3 sections C.7.6 and C.8.2.
    fn put_image(&self, object: &mut InMemDicomObject, n: u32) {
        let half = FIELD_OF_VIEW_MM / 2.0;
        let position = vec![format!("{:.3}", -half), format!("{:.3}", -half), format!("{:.3}", self.height_mm(n))];
        let spacing =
            [self.rows, self.columns].map(|pixels| format!("{:.6}", FIELD_OF_VIEW_MM / f64::from(pixels.max(1))));
        let lists = [
            (tags::IMAGE_TYPE, VR::CS, ["ORIGINAL", "PRIMARY", "AXIAL"].map(str::to_owned).to_vec()),
            (tags::SLICE_THICKNESS, VR::DS, vec![format!("{:.3}", self.spacing_mm())]),
            (tags::KVP, VR::DS, vec!["120".to_owned()]),
            (tags::X_RAY_TUBE_CURRENT, VR::IS, vec!["280".to_owned()]),
            (tags::CONVOLUTION_KERNEL, VR::SH, vec!["SOFT".to_owned()]),
            (tags::ACQUISITION_NUMBER, VR::IS, vec!["1".to_owned()]),
            (tags::IMAGE_POSITION_PATIENT, VR::DS, position),
            (tags::IMAGE_ORIENTATION_PATIENT, VR::DS, ["1", "0", "0", "0", "1", "0"].map(str::to_owned).to_vec()),
            (tags::SLICE_LOCATION, VR::DS, vec![format!("{:.3}", self.height_mm(n))]),
            (tags::PHOTOMETRIC_INTERPRETATION, VR::CS, vec!["MONOCHROME2".to_owned()]),
            (tags::PIXEL_SPACING, VR::DS, spacing.to_vec()),
            (tags::WINDOW_CENTER, VR::DS, vec!["40".to_owned()]),
            (tags::WINDOW_WIDTH, VR::DS, vec!["80".to_owned()]),
            (tags::RESCALE_INTERCEPT, VR::DS, vec![RESCALE_INTERCEPT.to_string()]),
            (tags::RESCALE_SLOPE, VR::DS, vec!["1".to_owned()]),
            (tags::RESCALE_TYPE, VR::LO, vec!["HU".to_owned()]),
        ];
        for (tag, vr, values) in lists {
            object.put(DataElement::new(tag, vr, PrimitiveValue::Strs(values.into())));
        }
        let numbers: [(Tag, u16); 7] = [
            (tags::SAMPLES_PER_PIXEL, 1),
            (tags::ROWS, self.rows),
            (tags::COLUMNS, self.columns),
            (tags::BITS_ALLOCATED, 16),
            (tags::BITS_STORED, 16),
            (tags::HIGH_BIT, 15),
            (tags::PIXEL_REPRESENTATION, 1),
        ];
        for (tag, number) in numbers {
            object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(number)));
        }
    }

    fn put_pixels(&self, n: u32, out: &mut BytesMut) {
        let columns = usize::from(self.columns);
        let shape = shape::Shape::at(2.0 * self.height_mm(n) / FIELD_OF_VIEW_MM);
        let mut noise = noise::Noise::new(self.seed, n, columns);
        let mut row = vec![0_i16; columns];
        let mut bytes = vec![0_u8; 2 * columns];
        for y in 0..self.rows {
            let inside = shape.fill_row(y, self.rows, &mut row);
            noise.add_to(&mut row, inside);
            for (pair, hounsfield) in bytes.chunks_exact_mut(2).zip(&row) {
                pair.copy_from_slice(&(hounsfield - RESCALE_INTERCEPT).to_le_bytes());
            }
            out.put_slice(&bytes);
        }
    }
}

/// A text that any text element can hold.
fn clean(text: &str, len_max: usize) -> String {
    text.chars().filter(|c| !c.is_control() && *c != '\\').take(len_max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> CtPhantom {
        CtPhantom { slices: 9, rows: 128, columns: 128, ..CtPhantom::default() }
    }

    fn hounsfield(dataset: &[u8]) -> Vec<i32> {
        let pixels = &dataset[dataset.len() - 2 * 128 * 128..];
        pixels.chunks_exact(2).map(|pair| i32::from(i16::from_le_bytes([pair[0], pair[1]])) - 1024).collect()
    }

    #[test]
    fn same_settings_give_the_same_bytes_and_others_do_not() {
        assert_eq!(small().slice(4), small().slice(4));
        assert_ne!(small().slice(4).1, small().slice(5).1);
        let reseeded = CtPhantom { seed: 2, ..small() };
        assert_ne!(small().slice(4).0, reseeded.slice(4).0);
        assert_ne!(small().slice(4).1, reseeded.slice(4).1);
    }

    #[test]
    fn the_middle_slice_is_a_head_with_noise_of_the_promised_strength() {
        let values = hounsfield(&small().slice(4).1);
        assert_eq!(values[0], -1024, "outside the reconstruction circle");
        assert!(values.iter().any(|&hu| hu > 900), "there is bone");
        // A patch of one tissue: left of the middle, in the brain.
        let patch: Vec<f64> =
            (52..76).flat_map(|y| (40..48).map(move |x| (y, x))).map(|(y, x)| f64::from(values[y * 128 + x])).collect();
        let mean = patch.iter().sum::<f64>() / patch.len() as f64;
        let deviation = (patch.iter().map(|hu| (hu - mean).powi(2)).sum::<f64>() / patch.len() as f64).sqrt();
        assert!((20.0..45.0).contains(&mean), "mean {mean}");
        assert!((9.0..16.0).contains(&deviation), "standard deviation {deviation}");
    }

    #[test]
    fn odd_settings_are_survived() {
        let odd =
            CtPhantom { slices: 0, rows: 1, columns: 3, patient_name: "a\\b\nc".repeat(99), ..CtPhantom::default() };
        let (_, dataset) = odd.slice(u32::MAX);
        assert!(crate::prescan::scan(&dataset, &CtPhantom::TRANSFER_SYNTAX).is_ok());
    }
}
