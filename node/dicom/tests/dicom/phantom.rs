//! The phantom as others see it.

use maillage_dicom::phantom::CtPhantom;
use maillage_dicom::prescan;

#[test]
fn slices_pass_the_scan_without_a_warning() {
    let phantom = CtPhantom { slices: 3, rows: 64, columns: 48, ..CtPhantom::default() };
    for n in 0..phantom.slices {
        let (sop_instance, dataset) = phantom.slice(n);
        let scan = prescan::scan(&dataset, &CtPhantom::TRANSFER_SYNTAX).expect("sound");
        assert_eq!((scan.undecodable, scan.warnings.len()), (None, 0));
        assert_eq!(dataset.len() - scan.cut(&dataset), 12 + 2 * 64 * 48);
        assert_eq!(sop_instance, phantom.sop_instance_uid(n));
    }
}

#[test]
fn slices_compress_as_a_real_head_ct_does() {
    let phantom = CtPhantom { slices: 9, ..CtPhantom::default() };
    let (_, dataset) = phantom.slice(4);
    let ratio = dataset.len() as f64 / crate::dataset::deflate(&dataset).len() as f64;
    // Real head CTs: about 2 to 3 with general compressors.
    assert!((1.7..3.5).contains(&ratio), "ratio {ratio}");
}
