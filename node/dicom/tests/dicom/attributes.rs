//! What is read from a data set.

use dicom_core::Tag;
use dicom_dictionary_std::tags;
use maillage_dicom::attributes::read;
use maillage_dicom::phantom::CtPhantom;
use maillage_dicom::{Attributes, Redacted, Uid, prescan};

use crate::dataset::{Elements, SYNTAXES, image};

fn explicit() -> Elements {
    Elements::new(&Uid::EXPLICIT_LE)
}

fn refusal(elements: Elements) -> &'static str {
    read(&elements.bytes, &Uid::EXPLICIT_LE).expect_err("refused").reason()
}

#[test]
fn every_coding_reads_the_same() {
    let reads = SYNTAXES.map(|syntax| {
        let bytes = image(&syntax);
        let scan = prescan::scan(&bytes, &syntax).expect("sound");
        read(scan.head(&bytes), &syntax).expect("attributes")
    });
    let [first, ..] = &reads;
    assert!(reads.iter().all(|read| read == first));
    assert_eq!(first.study_uid.as_str(), "1.2.3");
    assert_eq!(first.sop_class_uid, Uid::CT_IMAGE_STORAGE);
    assert_eq!(first.patient_name, Some(Redacted::new("DOE^JANE".to_owned())));
    assert_eq!(first.issuer_of_accession_number, Some(Redacted::new("HOSPITAL".to_owned())));
    assert_eq!((first.rows, first.columns, first.frames), (Some(4), Some(4), None));
    assert!(!first.replaced_text);
}

#[test]
fn the_phantom_reads_as_dicom_object_reads_it() {
    let phantom =
        CtPhantom { rows: 16, columns: 16, patient_name: "Éloïse^Łucja".to_owned(), ..CtPhantom::default() };
    let (_, dataset) = phantom.slice(7);
    let ours = read(&dataset, &CtPhantom::TRANSFER_SYNTAX).expect("attributes");
    let syntax = dicom_transfer_syntax_registry::entries::EXPLICIT_VR_LITTLE_ENDIAN.erased();
    let theirs = dicom_object::InMemDicomObject::read_dataset_with_ts(&dataset[..], &syntax).expect("read");
    let text =
        |tag: Tag| theirs.element(tag).ok().map(|e| e.to_str().expect("text").trim_end_matches(['\0', ' ']).to_owned());
    let number = |tag: Tag| theirs.element(tag).ok().map(|e| e.to_int::<i32>().expect("a number"));
    let redacted = |tag| text(tag).map(Redacted::new);
    let expected = Attributes {
        study_uid: Uid::parse(&text(tags::STUDY_INSTANCE_UID).expect("there")).expect("a uid"),
        series_uid: Uid::parse(&text(tags::SERIES_INSTANCE_UID).expect("there")).expect("a uid"),
        sop_instance_uid: Uid::parse(&text(tags::SOP_INSTANCE_UID).expect("there")).expect("a uid"),
        sop_class_uid: Uid::parse(&text(tags::SOP_CLASS_UID).expect("there")).expect("a uid"),
        patient_id: redacted(tags::PATIENT_ID),
        issuer_of_patient_id: redacted(tags::ISSUER_OF_PATIENT_ID),
        patient_name: redacted(tags::PATIENT_NAME),
        birth_date: redacted(tags::PATIENT_BIRTH_DATE),
        sex: redacted(tags::PATIENT_SEX),
        accession_number: redacted(tags::ACCESSION_NUMBER),
        issuer_of_accession_number: None,
        modality: redacted(tags::MODALITY),
        study_description: redacted(tags::STUDY_DESCRIPTION),
        series_description: redacted(tags::SERIES_DESCRIPTION),
        study_date: redacted(tags::STUDY_DATE),
        study_time: redacted(tags::STUDY_TIME),
        series_number: number(tags::SERIES_NUMBER),
        instance_number: number(tags::INSTANCE_NUMBER),
        body_part: redacted(tags::BODY_PART_EXAMINED),
        institution: redacted(tags::INSTITUTION_NAME),
        referring_physician: redacted(tags::REFERRING_PHYSICIAN_NAME),
        requesting_physician: redacted(tags::REQUESTING_PHYSICIAN),
        station_name: redacted(tags::STATION_NAME),
        rows: Some(16),
        columns: Some(16),
        frames: None,
        replaced_text: false,
    };
    assert_eq!(ours, expected);
    assert_eq!(ours.patient_name.expect("a name").expose(), "Éloïse^Łucja");
}

#[test]
fn missing_and_invalid_uids_are_refused() {
    assert_eq!(refusal(explicit().text((0x0008, 0x0016), "UI", "1.2")), "missing_uid");
    for bad in ["../../x", "/etc/x", "1.2\0.3", &"1".repeat(66)] {
        let elements = explicit().text((0x0008, 0x0016), "UI", "1.2").text((0x0008, 0x0018), "UI", "1.2");
        assert_eq!(refusal(elements.text((0x0020, 0x000D), "UI", bad)), "invalid_uid", "{bad:?}");
    }
    let empty = explicit().text((0x0020, 0x000D), "UI", "");
    assert_eq!(refusal(empty), "missing_uid");
}

#[test]
fn two_patients_in_one_data_set_are_refused_and_two_descriptions_are_not() {
    let twice = |tag, vr, first, second| {
        read(&explicit().identity().text(tag, vr, first).text(tag, vr, second).bytes, &Uid::EXPLICIT_LE)
    };
    assert_eq!(twice((0x0010, 0x0021), "LO", "A", "B").expect_err("refused").reason(), "duplicate");
    assert!(twice((0x0010, 0x0021), "LO", "A", "A").is_ok());
    let described = twice((0x0008, 0x1030), "LO", "first", "second").expect("kept");
    assert_eq!(described.study_description.expect("there").expose(), "first");
}

#[test]
fn debug_output_names_nobody() {
    let elements = explicit().identity().text((0x0008, 0x1030), "LO", "JANE DOE, call 555");
    let debug = format!("{:?}", read(&elements.bytes, &Uid::EXPLICIT_LE).expect("attributes"));
    for text in ["DOE", "JANE", "P1", "ACC1", "HOSPITAL", "555"] {
        assert!(!debug.contains(text), "{text} in {debug}");
    }
    assert!(debug.contains("1.2.3.4"), "uids may be logged");
}

#[test]
fn odd_texts_and_numbers_never_refuse_an_instance() {
    let odd = explicit()
        .identity()
        .value((0x0008, 0x1030), "LO", b"H\xE9l\xE8ne \x1b[31m")
        .text((0x0020, 0x0011), "IS", "no number")
        .text((0x0020, 0x0013), "IS", "99999999999")
        .text((0x0028, 0x0010), "LO", "not rows")
        .text((0x0032, 0x1032), "PN", &"X".repeat(5000));
    let read = read(&odd.bytes, &Uid::EXPLICIT_LE).expect("kept");
    assert!(read.replaced_text);
    assert_eq!(read.study_description.expect("there").display(), "Hélène [31m");
    assert_eq!((read.series_number, read.instance_number, read.rows), (None, None, None));
    assert_eq!(read.requesting_physician.expect("there").expose().len(), 1024);
}

#[test]
fn attributes_are_stored_and_read_back() {
    let read = read(&image(&Uid::EXPLICIT_LE), &Uid::EXPLICIT_LE).expect("attributes");
    let bytes = postcard::to_allocvec(&read).expect("encoded");
    assert_eq!(postcard::from_bytes::<Attributes>(&bytes).expect("decoded"), read);
}
