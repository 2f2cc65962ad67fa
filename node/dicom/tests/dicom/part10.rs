//! Files taken apart and put together.

use bytes::Bytes;
use maillage_dicom::part10::{FileMeta, PreambleKind, header, parse};
use maillage_dicom::phantom::CtPhantom;
use maillage_dicom::{AeTitle, Uid};

use crate::dataset::{Elements, image};

fn meta(transfer_syntax: &Uid) -> FileMeta {
    FileMeta {
        sop_class: Uid::CT_IMAGE_STORAGE,
        sop_instance: Uid::parse("1.2.3.4").expect("a uid"),
        transfer_syntax: transfer_syntax.clone(),
        source_ae: Some(AeTitle::parse("SCANNER").expect("a title")),
    }
}

fn file(transfer_syntax: &Uid) -> Bytes {
    [header(&meta(transfer_syntax)), image(transfer_syntax).into()].concat().into()
}

#[test]
fn header_and_data_set_make_a_file_that_others_read() {
    let phantom = CtPhantom { rows: 16, columns: 16, ..CtPhantom::default() };
    let (sop_instance, dataset) = phantom.slice(0);
    let meta = FileMeta { sop_instance, ..meta(&CtPhantom::TRANSFER_SYNTAX) };
    let file = [header(&meta), dataset.clone()].concat();
    let object = dicom_object::from_reader(&file[..]).expect("read by dicom-object");
    assert_eq!(object.meta().media_storage_sop_instance_uid.trim_end_matches('\0'), meta.sop_instance.as_str());
    assert_eq!(object.meta().implementation_class_uid.trim_end_matches('\0'), Uid::IMPLEMENTATION_CLASS.as_str());
    assert_eq!(object.meta().implementation_version_name.as_deref().map(str::trim), Some("MAILLAGE_0_1"));
    let pixels = object.element(dicom_dictionary_std::tags::PIXEL_DATA).expect("pixels").to_bytes().expect("bytes");
    assert_eq!(&pixels[..], &dataset[dataset.len() - 512..]);
}

#[test]
fn a_file_comes_apart_as_it_was_put_together_without_copying() {
    for syntax in [Uid::EXPLICIT_LE, Uid::IMPLICIT_LE, Uid::EXPLICIT_BE, Uid::JPEG_LOSSLESS_SV1] {
        let file = file(&syntax);
        let parsed = parse(file.clone()).expect("parsed");
        assert_eq!(parsed.meta, meta(&syntax));
        assert_eq!(parsed.preamble, PreambleKind::Zero);
        assert_eq!(parsed.dataset, image(&syntax));
        assert_eq!(parsed.dataset.as_ptr_range().end, file.as_ptr_range().end, "the same memory");
    }
}

#[test]
fn preambles_are_told_apart_and_never_come_back() {
    let with_preamble = |magic: &[u8]| {
        let mut file = file(&Uid::EXPLICIT_LE).to_vec();
        file[..magic.len()].copy_from_slice(magic);
        parse(file.into()).expect("parsed")
    };
    assert_eq!(with_preamble(b"MZ\x90\0").preamble, PreambleKind::Foreign);
    assert_eq!(with_preamble(b"\x7FELF").preamble, PreambleKind::Foreign);
    assert_eq!(with_preamble(b"II*\0\x08\0\0\0").preamble, PreambleKind::Tiff);
    let rewritten = header(&with_preamble(b"MZ\x90\0").meta);
    assert!(rewritten[..128].iter().all(|&byte| byte == 0));
}

#[test]
fn files_without_a_preamble_are_taken() {
    let whole = file(&Uid::EXPLICIT_LE);
    for skipped in [128, 132] {
        let parsed = parse(whole.slice(skipped..)).expect("parsed");
        assert_eq!((parsed.meta, parsed.preamble), (meta(&Uid::EXPLICIT_LE), PreambleKind::Absent));
    }
    for syntax in [Uid::EXPLICIT_LE, Uid::IMPLICIT_LE, Uid::EXPLICIT_BE] {
        let parsed = parse(image(&syntax).into()).expect("a bare data set");
        assert_eq!(parsed.meta, FileMeta { source_ae: None, ..meta(&syntax) });
    }
}

#[test]
fn incomplete_meta_information_is_completed_from_the_data_set() {
    let written = Elements::new(&Uid::EXPLICIT_LE).text((0x0002, 0x0010), "UI", Uid::IMPLICIT_LE.as_str());
    let file = [b"DICM".as_slice(), &written.bytes, &image(&Uid::IMPLICIT_LE)].concat();
    let parsed = parse(file.into()).expect("parsed");
    assert_eq!(parsed.meta, FileMeta { source_ae: None, ..meta(&Uid::IMPLICIT_LE) });
}

#[test]
fn what_is_no_file_is_refused() {
    let reason = |bytes: &[u8]| parse(Bytes::copy_from_slice(bytes)).expect_err("refused").reason();
    assert_eq!(reason(b""), "not_dicom");
    assert_eq!(reason(b"GET / HTTP/1.1\r\n\r\n"), "not_dicom");
    assert_eq!(reason(b"DICM"), "no_transfer_syntax");
    let long = Elements::new(&Uid::EXPLICIT_LE).header((0x0002, 0x0102), "OB", 0xFFFF_FFFE).bytes;
    assert_eq!(reason(&[b"DICM".as_slice(), &long].concat()), "broken_meta");
    let large = Elements::new(&Uid::EXPLICIT_LE).value((0x0002, 0x0102), "OB", &vec![0; 2 << 20]).bytes;
    assert_eq!(reason(&[b"DICM".as_slice(), &large].concat()), "broken_meta", "over the bound, though it is all there");
    let bad = Elements::new(&Uid::EXPLICIT_LE).text((0x0002, 0x0003), "UI", "../../etc").bytes;
    assert_eq!(reason(&[b"DICM".as_slice(), &bad].concat()), "invalid_uid");
    let endless = Elements::new(&Uid::EXPLICIT_LE).text((0x0002, 0x0100), "UI", "1.2").bytes.repeat(200);
    assert_eq!(reason(&[b"DICM".as_slice(), &endless].concat()), "broken_meta");
}
