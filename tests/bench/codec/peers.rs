//! Other codecs on the same pixels, as far as they are on this machine: dcmtk's JPEG-LS as a process, and
//! imagecodecs (CharLS, OpenJPH) in the Python that is first in `PATH`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use maillage_codec::SampleWidth;

use super::{BYTES_A_ROUND, Image};
use crate::lab::{Lab, program};
use crate::process::run;
use crate::report::{Figure, Row, Section};

const SCRIPT: &str = include_str!("peers.py");
/// Deepest folder that is looked into for files.
const DEPTH_MAX: usize = 8;

/// The Python that is first in `PATH`.
pub(super) fn python() -> Option<PathBuf> {
    program("python3")
}

/// Where pydicom-data keeps its files, if it is installed.
pub(super) async fn pydicom_data(python: Option<&Path>) -> Option<PathBuf> {
    let mut command = Command::new(python?);
    command.args(["-c", "import data_store, os; print(os.path.dirname(data_store.__file__))"]);
    let output = run(command).await.ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

/// All files below a folder, by name.
pub(super) fn files_under(folder: &Path) -> HashMap<String, PathBuf> {
    let mut found = HashMap::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && depth < DEPTH_MAX {
                folders.push((path, depth + 1));
            } else {
                found.insert(entry.file_name().to_string_lossy().into_owned(), path);
            }
        }
    }
    found
}

/// Measures the peers that are here on one image.
pub(super) async fn measure(
    lab: &Lab,
    image: &Image,
    python: Option<&Path>,
    section: &mut Section,
) -> anyhow::Result<()> {
    if let Some(row) = dcmcjpls(lab, image).await {
        section.push(row);
    }
    let Some(python) = python else { return Ok(()) };
    let folder = lab.dir("codec")?;
    let (script, pixels) = (folder.path().join("peers.py"), folder.path().join("pixels"));
    std::fs::write(&script, SCRIPT)?;
    std::fs::write(&pixels, &image.pixels)?;
    let shape = &image.shape;
    let numbers = [
        if shape.width == SampleWidth::One { 1 } else { 2 },
        u64::from(shape.width == SampleWidth::TwoBig),
        shape.components.into(),
        shape.columns.into(),
        BYTES_A_ROUND as u64,
        lab.rounds as u64,
    ];
    let mut command = Command::new(python);
    command.arg(script).arg(pixels).args(numbers.map(|number| number.to_string()));
    // Without imagecodecs it fails: named as missing at the end.
    let Ok(output) = run(command).await else { return Ok(()) };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut words = line.split_whitespace();
        let name = words.next().context("a codec's name")?;
        let figures: Vec<f64> = words.map_while(|word| word.parse().ok()).collect();
        match figures.split_first() {
            Some((ratio, rates)) if rates.len() == 2 * lab.rounds => {
                let (encoding, decoding) = rates.split_at(lab.rounds);
                let figures = vec![
                    Figure::more_is_better("ratio", vec![*ratio]),
                    Figure::more_is_better("MB/s enc", encoding.to_vec()),
                    Figure::more_is_better("MB/s dec", decoding.to_vec()),
                ];
                let note = "imagecodecs, a file as a whole";
                section.push(Row { name: format!("{}, {name}", image.name), note, figures });
            }
            _ => section.skip(&format!("{} ({line}): what codes it losslessly", image.name)),
        }
    }
    Ok(())
}

/// The ratio of dcmtk's JPEG-LS; `None` when it is not here or refuses the image.
async fn dcmcjpls(lab: &Lab, image: &Image) -> Option<Row> {
    let folder = lab.dir("codec").ok()?;
    let coded = folder.path().join("coded.dcm");
    let mut command = Command::new(program("dcmcjpls")?);
    command.args(["+un", "+el"]).arg(&image.file).arg(&coded);
    run(command).await.ok()?;
    // The head is the same in both, but for some bytes of file meta.
    let head = std::fs::metadata(&image.file).ok()?.len().checked_sub(image.pixels.len() as u64)?;
    let stored = std::fs::metadata(&coded).ok()?.len().checked_sub(head)?;
    let ratio = image.pixels.len() as f64 / stored as f64;
    let figures = vec![Figure::more_is_better("ratio", vec![ratio])];
    Some(Row { name: format!("{}, JPEG-LS (dcmcjpls)", image.name), note: "dcmtk, a file as a whole", figures })
}

/// Names the peers that are not here.
pub(super) async fn name_missing(python: Option<&Path>, section: &mut Section) {
    if program("dcmcjpls").is_none() {
        section.skip("dcmcjpls (JPEG-LS)");
    }
    let imagecodecs = match python {
        Some(python) => {
            let mut command = Command::new(python);
            command.args(["-c", "import imagecodecs"]);
            run(command).await.is_ok()
        }
        None => false,
    };
    if !imagecodecs {
        section.skip("imagecodecs (JPEG-LS, HTJ2K)");
    }
}
