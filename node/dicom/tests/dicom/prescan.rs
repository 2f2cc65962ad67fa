//! The pre-scan against sound and hostile data sets.

use std::time::Duration;

use maillage_dicom::prescan::{Undecodable, Warning, scan};
use maillage_dicom::{Rejection, Uid};
use tokio::time::Instant;

use crate::dataset::{Elements, SYNTAXES, deflate, image};

fn explicit() -> Elements {
    Elements::new(&Uid::EXPLICIT_LE)
}

fn refusal(elements: Elements) -> &'static str {
    scan(&elements.bytes, &Uid::EXPLICIT_LE).expect_err("refused").reason()
}

#[test]
fn sound_images_pass_in_every_coding() {
    for syntax in SYNTAXES {
        let bytes = image(&syntax);
        let scan = scan(&bytes, &syntax).unwrap_or_else(|e| panic!("{syntax}: {e}"));
        let cut = scan.cut(&bytes);
        assert_eq!(scan.undecodable, None, "{syntax}");
        assert_eq!(scan.warnings, [], "{syntax}");
        assert_eq!(scan.top_level_elements, 14, "{syntax}");
        assert_eq!(scan.pixel_offset, Some(cut));
        assert_eq!(scan.head(&bytes), &bytes[..cut]);
        let pixel_tag: &[u8] = if syntax == Uid::EXPLICIT_BE { b"\x7F\xE0\x00\x10" } else { b"\xE0\x7F\x10\x00" };
        assert!(bytes[cut..].starts_with(pixel_tag), "{syntax}");
    }
}

#[test]
fn a_deflated_image_is_scanned_inflated_and_not_cut() {
    let plain = image(&Uid::EXPLICIT_LE);
    let deflated = deflate(&plain);
    let scan = scan(&deflated, &Uid::DEFLATED_EXPLICIT_LE).expect("sound");
    assert_eq!((scan.pixel_offset, scan.has_pixels), (None, true));
    assert_eq!(scan.cut(&deflated), deflated.len());
    let head = scan.head(&deflated);
    assert_eq!(head, &plain[..plain.len() - 32 - 12]);
    let read = maillage_dicom::attributes::read(head, &Uid::DEFLATED_EXPLICIT_LE).expect("attributes");
    assert_eq!(read.sop_instance_uid.as_str(), "1.2.3.4");
}

#[test]
fn deflate_bombs_and_broken_streams_are_refused() {
    let reason = |bytes: &[u8]| scan(bytes, &Uid::DEFLATED_EXPLICIT_LE).expect_err("refused").reason();
    let bomb = deflate(&vec![0; 8 << 20]);
    assert!(bomb.len() < 10_000);
    assert_eq!(reason(&bomb), "inflate_ratio");
    let mut cut = deflate(&image(&Uid::EXPLICIT_LE));
    cut.truncate(cut.len() / 2);
    assert_eq!(reason(&cut), "broken_deflate");
    assert_eq!(reason(b"\x1F\x8B\x08\0\0\0\0\0 a gzip header"), "broken_deflate");
    assert_eq!(reason(b""), "broken_deflate");
}

/// 266 bytes that drive dicom-object to gigabytes, and nesting that overflows its stack.
fn bombs() -> Vec<(Vec<u8>, Uid, &'static str)> {
    let mut bombs = Vec::new();
    for vr in ["OB", "UN"] {
        let mut bomb = explicit().identity().header((0x0042, 0x0011), vr, 0xFFFF_FFFE);
        bomb.bytes.resize(266, 0);
        bombs.push((bomb.bytes, Uid::EXPLICIT_LE, "length"));
    }
    for depth in [65, 2_000, 50_000] {
        for vr in ["SQ", "UN"] {
            let mut nested = explicit().header((0x0008, 0x1140), vr, u32::MAX);
            // Within Unknown everything is implicit.
            let inner = if vr == "UN" { Elements::new(&Uid::IMPLICIT_LE) } else { explicit() };
            let level = inner.item(u32::MAX).header((0x0008, 0x1140), "SQ", u32::MAX).bytes;
            nested.bytes.extend_from_slice(&level.repeat(depth));
            bombs.push((nested.bytes, Uid::EXPLICIT_LE, "too_deep"));
        }
        // Defined lengths, from the outside in.
        let implicit = || Elements::new(&Uid::IMPLICIT_LE);
        let total = u32::try_from(depth * 16).expect("a length");
        let levels = (0..depth).map(|level| total - u32::try_from(level * 16).expect("a length"));
        let nested: Vec<u8> =
            levels.flat_map(|left| implicit().header((0x0008, 0x1140), "SQ", left - 8).item(left - 16).bytes).collect();
        bombs.push((nested, Uid::IMPLICIT_LE, "too_deep"));
    }
    bombs
}

#[test]
fn bombs_are_refused_at_once() {
    for (bomb, syntax, reason) in bombs() {
        let before = Instant::now();
        let rejection = scan(&bomb, &syntax).expect_err("refused");
        assert!(before.elapsed() < Duration::from_millis(50), "{rejection}");
        assert_eq!(rejection.reason(), reason);
        assert!(maillage_dicom::attributes::read(&bomb, &syntax).is_err(), "bounded without the pre-scan too");
    }
}

/// Run alone, in a process of its own, by the test below.
#[test]
#[ignore = "measures the memory of a whole process"]
fn bombs_in_a_fresh_process() {
    for (bomb, syntax, _) in bombs() {
        assert!(scan(&bomb, &syntax).is_err());
    }
    #[expect(clippy::disallowed_methods, reason = "the kernel's account of this process is no file of a node")]
    let status = std::fs::read_to_string("/proc/self/status").expect("a Linux process");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kilobytes: usize = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kilobytes < 64 << 10, "peak of {kilobytes} kB");
}

#[test]
#[cfg(target_os = "linux")]
fn bombs_take_less_than_64_mebibytes() {
    let tests = std::env::current_exe().expect("this binary");
    let run = std::process::Command::new(tests)
        .args(["--exact", "prescan::bombs_in_a_fresh_process", "--ignored"])
        .output()
        .expect("runs");
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && output.contains("1 passed"), "{output}");
}

#[test]
fn nesting_to_the_bound_passes() {
    let open = |mut elements: Elements| {
        for _ in 0..64 {
            elements = elements.header((0x0008, 0x1140), "SQ", u32::MAX).item(u32::MAX);
        }
        for _ in 0..64 {
            elements = elements.end_item().end_sequence();
        }
        elements
    };
    for syntax in SYNTAXES {
        assert!(scan(&open(Elements::new(&syntax)).bytes, &syntax).is_ok(), "{syntax}");
    }
}

#[test]
fn undefined_lengths_stand_only_where_they_may() {
    for vr in ["OB", "OW", "UT"] {
        assert_eq!(refusal(explicit().header((0x0009, 0x1001), vr, u32::MAX).end_sequence()), "undefined_length");
    }
    let implicit = |tag| Elements::new(&Uid::IMPLICIT_LE).header(tag, "", u32::MAX).end_sequence().bytes;
    let reason = |bytes: Vec<u8>| scan(&bytes, &Uid::IMPLICIT_LE).err().map(|rejection| rejection.reason());
    assert_eq!(reason(implicit((0x0010, 0x0010))), Some("undefined_length"), "a name is no sequence");
    assert_eq!(reason(implicit((0x7FE0, 0x0010))), Some("undefined_length"));
    assert_eq!(reason(implicit((0x0009, 0x1001))), None, "a private sequence");
    assert_eq!(refusal(explicit().fragments(&[2])), "undefined_length", "encapsulated in a native syntax");
    let open_fragment = explicit().header((0x7FE0, 0x0010), "OB", u32::MAX).item(u32::MAX).bytes;
    let rejection = scan(&open_fragment, &Uid::JPEG_LOSSLESS_SV1).expect_err("refused");
    assert_eq!(rejection.reason(), "undefined_length");
}

#[test]
fn lengths_beyond_the_enclosing_item_are_refused() {
    // Within the file, but not within its item.
    let inner = explicit().header((0x0008, 0x1150), "UI", 20).bytes;
    let sequence = explicit().header((0x0008, 0x1140), "SQ", 8 + 10).item(10);
    let mut bytes = sequence.bytes;
    bytes.extend_from_slice(&inner);
    bytes.extend_from_slice(&[b'1'; 40]);
    assert_eq!(scan(&bytes, &Uid::EXPLICIT_LE).expect_err("refused").reason(), "length");
    assert_eq!(refusal(explicit().header((0x0008, 0x1140), "SQ", 8).item(1)), "length");
}

#[test]
fn broken_structures_are_refused_with_their_reason() {
    assert_eq!(refusal(explicit().header((0x0008, 0x1140), "SQ", u32::MAX)), "truncated");
    assert_eq!(refusal(explicit().header((0x0008, 0x1140), "SQ", u32::MAX).item(u32::MAX)), "truncated");
    assert_eq!(refusal(explicit().end_item()), "unexpected_tag");
    assert_eq!(refusal(explicit().item(0)), "unexpected_tag");
    assert_eq!(refusal(explicit().text((0x0002, 0x0010), "UI", "1.2")), "unexpected_tag");
    assert_eq!(refusal(explicit().value((0x0008, 0x0005), "a1", b"")), "bad_vr");
    let mut cut = explicit().identity();
    cut.bytes.truncate(cut.bytes.len() - 1);
    assert_eq!(refusal(cut), "length");
}

#[test]
fn oddities_are_tolerated_and_told() {
    let mut odd = explicit()
        .identity()
        .text((0x0010, 0x0030), "DA", "19700101")
        .value((0x0018, 0x0015), "CS", b"ARM")
        .text((0x0018, 0x0015), "CS", "LEG");
    odd.bytes.extend_from_slice(&[0; 100]);
    let scan = scan(&odd.bytes, &Uid::EXPLICIT_LE).expect("tolerated");
    let all = [Warning::OutOfOrder, Warning::RepeatedTag, Warning::OddLength, Warning::TrailingZeros];
    assert_eq!(scan.warnings, all);
}

#[test]
fn pixels_that_contradict_their_header_are_kept_and_marked() {
    let rows = dicom_dictionary_std::tags::ROWS;
    let undecodable = |elements: Elements| scan(&elements.bytes, &Uid::EXPLICIT_LE).expect("kept").undecodable;
    assert_eq!(undecodable(explicit().geometry(4, 4).pixels(32)), None);
    assert_eq!(undecodable(explicit().geometry(4, 4).pixels(30)), Some(Undecodable::TooShort));
    assert_eq!(undecodable(explicit().geometry(0, 4).pixels(32)), Some(Undecodable::Invalid(rows)));
    assert_eq!(undecodable(explicit().pixels(32)), Some(Undecodable::Missing(rows)));
    let overflow = explicit().text((0x0028, 0x0008), "IS", "2147483647").geometry(65535, 65535).pixels(32);
    assert_eq!(undecodable(overflow), Some(Undecodable::Overflow));
    let wrong_vr = explicit().short((0x0028, 0x0002), 1).text((0x0028, 0x0010), "LO", "4 ").pixels(32);
    assert_eq!(undecodable(wrong_vr), Some(Undecodable::Invalid(rows)));
    let surplus = scan(&explicit().geometry(4, 4).pixels(64).bytes, &Uid::EXPLICIT_LE).expect("kept");
    assert_eq!((surplus.undecodable, surplus.warnings), (None, vec![Warning::PixelSurplus]));
    let empty = Elements::new(&Uid::JPEG_LOSSLESS_SV1).geometry(4, 4).fragments(&[]).bytes;
    let empty = scan(&empty, &Uid::JPEG_LOSSLESS_SV1).expect("kept");
    assert_eq!(empty.undecodable, Some(Undecodable::NoFragments));
}

#[test]
fn palettes_with_too_few_entries_are_marked() {
    let with_palette = |entries: u16, len: usize| {
        let descriptor = [entries.to_le_bytes(), [0, 0], [16, 0]].concat();
        let mut elements = explicit().short((0x0028, 0x0002), 1).text((0x0028, 0x0004), "CS", "PALETTE COLOR");
        elements = elements.short((0x0028, 0x0010), 4).short((0x0028, 0x0011), 4).short((0x0028, 0x0100), 8);
        for colour in 1..=3 {
            elements = elements.value((0x0028, 0x1100 + colour), "US", &descriptor);
        }
        for colour in 1..=3 {
            elements = elements.value((0x0028, 0x1200 + colour), "OW", &vec![0; len]);
        }
        scan(&elements.pixels(16).bytes, &Uid::EXPLICIT_LE).expect("kept").undecodable
    };
    assert_eq!(with_palette(256, 512), None);
    assert_eq!(with_palette(256, 510), Some(Undecodable::Palette));
    assert_eq!(with_palette(0, 512), Some(Undecodable::Palette), "zero means 65,536");
}

#[test]
fn rejections_say_where_and_never_what() {
    let rejection = scan(&explicit().header((0x0010, 0x0010), "PN", 99).bytes, &Uid::EXPLICIT_LE).expect_err("refused");
    assert_eq!(rejection.to_string(), "element (0010,0010) at byte 0 declares 99 bytes where 0 are left");
    assert!(matches!(rejection, Rejection::LengthBeyondEnd { declared: 99, left: 0, .. }));
}
