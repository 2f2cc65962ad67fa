//! Random damage to sound data sets and files: refused or read, never a panic.

use bytes::Bytes;
use maillage_dicom::part10::{self, FileMeta};
use maillage_dicom::{Uid, attributes, prescan};
use proptest::prelude::*;

use crate::dataset::{SYNTAXES, deflate, image};

/// A flip, an insertion, a removal, or a cut.
fn damage(bytes: &mut Vec<u8>, kind: u8, at: usize, byte: u8) {
    if bytes.is_empty() {
        return;
    }
    let at = at % bytes.len();
    match kind % 5 {
        0 | 1 => bytes[at] = byte,
        2 => bytes.insert(at, byte),
        3 => drop(bytes.remove(at)),
        _ => {
            // A length that is likely to be believed.
            let end = bytes.len().min(at + 4);
            bytes[at..end].fill(0xFF);
        }
    }
}

fn damages() -> impl Strategy<Value = Vec<(u8, usize, u8)>> {
    proptest::collection::vec((any::<u8>(), 0_usize..4096, any::<u8>()), 1..12)
}

fn read(bytes: &[u8], syntax: &Uid) {
    if let Ok(scan) = prescan::scan(bytes, syntax) {
        assert!(scan.cut(bytes) <= bytes.len());
        assert!(scan.top_level_elements <= scan.elements);
        let _ = attributes::read(scan.head(bytes), syntax);
    }
    let _ = attributes::read(bytes, syntax);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_data_sets_never_panic(damages in damages(), written in 0_usize..4, read_as in 0_usize..4) {
        let mut bytes = image(&SYNTAXES[written]);
        for (kind, at, byte) in damages {
            damage(&mut bytes, kind, at, byte);
        }
        read(&bytes, &SYNTAXES[written]);
        read(&bytes, &SYNTAXES[read_as]);
    }

    #[test]
    fn damaged_deflated_data_sets_never_panic(damages in damages()) {
        let mut bytes = deflate(&image(&Uid::EXPLICIT_LE));
        for (kind, at, byte) in damages {
            damage(&mut bytes, kind, at, byte);
        }
        read(&bytes, &Uid::DEFLATED_EXPLICIT_LE);
    }

    #[test]
    fn damaged_files_never_panic(damages in damages(), written in 0_usize..4, skipped in 0_usize..200) {
        let meta = FileMeta {
            sop_class: Uid::CT_IMAGE_STORAGE,
            sop_instance: Uid::EXPLICIT_LE,
            transfer_syntax: SYNTAXES[written].clone(),
            source_ae: None,
        };
        let mut bytes = [part10::header(&meta).as_ref(), &image(&SYNTAXES[written])].concat();
        for (kind, at, byte) in damages {
            damage(&mut bytes, kind, at, byte);
        }
        let whole = Bytes::from(bytes);
        let _ = part10::parse(whole.clone());
        let _ = part10::parse(whole.slice(skipped.min(whole.len())..));
    }

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for syntax in SYNTAXES {
            read(&bytes, &syntax);
        }
        read(&bytes, &Uid::DEFLATED_EXPLICIT_LE);
        let _ = part10::parse(bytes.into());
    }
}
