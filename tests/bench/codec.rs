//! The lossless codec on real files and on the phantom: ratio, and megabytes of pixels a second of one core.
//!
//! ```text
//! a data set -> pre-scan -> its uncompressed pixels -> ours, zstd (here); JPEG-LS (dcmcjpls, a process);
//!                                                      JPEG-LS and HTJ2K (imagecodecs, in one Python process)
//! ```
//! Ours and zstd are given the pixels in chunks, as the store has them; the others each file as a whole, which
//! favours them. Every coded form is decoded and compared, ours and the peers'. The rate of a process includes
//! its start, so `dcmcjpls` shows a ratio only.

use std::hint::black_box;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use maillage_codec::{SampleWidth, Shape};
use maillage_dicom::phantom::CtPhantom;
use maillage_dicom::{part10, prescan};
use rustix::thread::ClockId;

use crate::lab::Lab;
use crate::report::{Figure, Row, Section};

mod peers;

/// The files of pydicom-data that are measured: a CT, two radiographs, two MR, a colour ultrasound. Not those named
/// `…_UNCI`: they were once coded lossily with wavelets, which a wavelet codec undoes at a ratio of 123.
const FILES: [(&str, &str); 6] = [
    ("CT", "693_UNCR.dcm"),
    ("CR", "RG1_UNCR.dcm"),
    ("CR, 10 bits", "RG3_UNCR.dcm"),
    ("MR", "MR2_UNCR.dcm"),
    ("MR, overlays", "MR-SIEMENS-DICOM-WithOverlays.dcm"),
    ("US, RGB", "US1_UNCR.dcm"),
];
/// Pixels are coded again until so many bytes went through: a small file alone is too short to time.
const BYTES_A_ROUND: usize = 16 << 20;

/// The uncompressed pixels of one file.
struct Image {
    name: String,
    file: PathBuf,
    pixels: Vec<u8>,
    shape: Shape,
}

/// Measures.
pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Section> {
    let mut section = Section::new("codec", "lossless coding of pixels, processor time of one core".to_owned());
    let python = peers::python();
    let folder = lab.dir("phantom")?;
    let images = images(folder.path(), python.as_deref(), &mut section).await?;
    for image in &images {
        measure(lab, image, &mut section)?;
        peers::measure(lab, image, python.as_deref(), &mut section).await?;
    }
    peers::name_missing(python.as_deref(), &mut section).await;
    let rate = |what: &str| section.median("CT phantom, ours", what);
    let (encode, decode) = (rate("MB/s enc"), rate("MB/s dec"));
    section.ratio("CT phantom: encoding, MB/s", encode, 300.0);
    section.ratio("CT phantom: decoding / encoding", decode / encode, 1.0);
    for image in &images {
        let of = |codec: &str| section.median(&format!("{}, {codec}", image.name), "ratio");
        section.ratio(&format!("{}: ours / HTJ2K, ratio", image.name), of("ours") / of("HTJ2K"), 1.0);
    }
    Ok(section)
}

async fn images(folder: &Path, python: Option<&Path>, section: &mut Section) -> anyhow::Result<Vec<Image>> {
    let phantom = CtPhantom::default();
    let (sop_instance, dataset) = phantom.slice(phantom.slices / 2);
    let header = part10::header(&part10::FileMeta {
        sop_class: CtPhantom::SOP_CLASS,
        sop_instance,
        transfer_syntax: CtPhantom::TRANSFER_SYNTAX,
        source_ae: None,
    });
    let file = folder.join("phantom.dcm");
    std::fs::write(&file, [&header[..], &dataset[..]].concat()).context("write the phantom")?;
    let mut images = vec![Image::read("CT phantom", file)?];
    match peers::pydicom_data(python).await {
        None => section.skip("pydicom-data (the real images)"),
        Some(installed) => {
            let found = peers::files_under(&installed);
            for (name, file) in FILES {
                match found.get(file) {
                    Some(path) => images.push(Image::read(name, path.clone())?),
                    None => section.skip(file),
                }
            }
        }
    }
    Ok(images)
}

impl Image {
    fn read(name: &str, file: PathBuf) -> anyhow::Result<Self> {
        let parsed = part10::parse(std::fs::read(&file)?.into()).with_context(|| file.display().to_string())?;
        let scan = prescan::scan(&parsed.dataset, &parsed.meta.transfer_syntax)?;
        let native = scan.native_pixels.with_context(|| format!("{name} has no native pixels"))?;
        let width = match (native.rows.sample_bytes, native.is_big_endian) {
            (1, _) => SampleWidth::One,
            (_, false) => SampleWidth::TwoLittle,
            (_, true) => SampleWidth::TwoBig,
        };
        let shape = Shape {
            width,
            components: native.rows.components,
            columns: native.rows.columns.into(),
            bits_stored: native.rows.bits_stored,
        };
        let pixels = parsed.dataset.get(native.value_offset..).context("pixels")?.to_vec();
        Ok(Self { name: name.to_owned(), file, pixels, shape })
    }

    /// As the store cuts them.
    fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let row = self.shape.row_len().unwrap_or(1);
        self.pixels.chunks((maillage_codec::RAW_LEN_MAX / row).max(1) * row)
    }
}

fn measure(lab: &Lab, image: &Image, section: &mut Section) -> anyhow::Result<()> {
    let ours = |raw: &[u8]| maillage_codec::encode(raw, 0, Some(image.shape)).unwrap_or_else(|| raw.to_vec());
    let back = |coded: &[u8], len: usize| {
        if coded.len() == len { Ok(coded.to_vec()) } else { Ok(maillage_codec::decode(coded, len)?) }
    };
    section.push(codec(lab, image, "ours", "in chunks, as stored", &ours, &back)?);
    for (name, level) in [("zstd-1", 1), ("zstd-3", 3)] {
        let encode = |raw: &[u8]| zstd::bulk::compress(raw, level).unwrap_or_default();
        let decode = |coded: &[u8], len: usize| Ok(zstd::bulk::decompress(coded, len)?);
        section.push(codec(lab, image, name, "in the same chunks", &encode, &decode)?);
    }
    Ok(())
}

type Encode<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
type Decode<'a> = &'a dyn Fn(&[u8], usize) -> anyhow::Result<Vec<u8>>;

fn codec(
    lab: &Lab,
    image: &Image,
    name: &str,
    note: &'static str,
    encode: Encode<'_>,
    decode: Decode<'_>,
) -> anyhow::Result<Row> {
    let coded: Vec<Vec<u8>> = image.chunks().map(encode).collect();
    for (coded, raw) in coded.iter().zip(image.chunks()) {
        ensure!(decode(coded, raw.len())? == raw, "{name} does not give {} back", image.name);
    }
    let stored: usize = coded.iter().map(Vec::len).sum();
    let times = BYTES_A_ROUND.div_ceil(image.pixels.len());
    let (mut encoding, mut decoding) = (Vec::new(), Vec::new());
    let rate = |since: f64| (times * image.pixels.len()) as f64 / 1e6 / (processor_seconds() - since);
    for _ in 0..lab.rounds {
        let since = processor_seconds();
        for _ in 0..times {
            image.chunks().for_each(|raw| drop(black_box(encode(raw))));
        }
        encoding.push(rate(since));
        let since = processor_seconds();
        for _ in 0..times {
            for (coded, raw) in coded.iter().zip(image.chunks()) {
                black_box(decode(coded, raw.len())?);
            }
        }
        decoding.push(rate(since));
    }
    let figures = vec![
        Figure::more_is_better("ratio", vec![image.pixels.len() as f64 / stored as f64]),
        Figure::more_is_better("MB/s enc", encoding),
        Figure::more_is_better("MB/s dec", decoding),
    ];
    Ok(Row { name: format!("{}, {name}", image.name), note, figures })
}

/// What this thread has had of a processor: other work on the machine does not count.
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
