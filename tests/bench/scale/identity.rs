//! Who is who among millions of exams: the identifiers of each from its number, so that an exam that was lived
//! and one that was copied are told apart by nothing, and any of them can be asked for.
//!
//! What is random in a real life (names of keys and commands, addresses, digests, signatures) is as hard to
//! compress here: pseudo-random of the number. Study UIDs and names of keys are scattered over the exams, as
//! random ones are, by a permutation whose inverse gives them in ascending order.

use maillage_consensus::exam::{Patient, Priority, Request, Text8};
use maillage_consensus::ids::{CommandId, KeyId, Line, Name, Secret, UidText};

/// Partner hospitals, readers and modalities, as the service has them.
const HOSPITALS: u64 = 100;
const READERS: u64 = 360;
const MODALITIES: [&str; 4] = ["CT", "CT", "MR", "CR"];
/// After so many exams hospital, reader, modality and urgency come again together.
pub(super) const COHORT: u64 = 1_800;

/// Bits of an exam's number, and with them of its place: 134 million.
const BITS: u32 = 27;
const MASK: u64 = (1 << BITS) - 1;
/// Odd, so that multiplying by it permutes the numbers below a power of two.
const SCATTER: u64 = 0x9E37_79B1;

/// What a number is scattered to.
fn place(n: u64) -> u64 {
    n.wrapping_mul(SCATTER) & MASK
}

/// The numbers `first..end` in ascending order of their places.
pub(super) fn by_place(first: u64, end: u64) -> impl Iterator<Item = u64> {
    // Newton's iteration for the inverse modulo a power of two: each step doubles the bits that are right.
    let inverse = (0..6).fold(1_u64, |x, _| x.wrapping_mul(2_u64.wrapping_sub(SCATTER.wrapping_mul(x))));
    (0..=MASK).map(move |place| place.wrapping_mul(inverse) & MASK).filter(move |n| (first..end).contains(n))
}

/// What random bytes are for: one number's differ from each other.
#[derive(Clone, Copy)]
pub(super) enum What {
    Command = 1,
    Writes,
    CommandId,
    Manifest,
    KeyId,
    Secret,
    Study,
    Signature,
}

/// One step of SplitMix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Random bytes of a number.
pub(super) fn random<const LEN: usize>(what: What, n: u64) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let seed = mix(n ^ ((what as u64) << 56));
    for (at, word) in (0_u64..).zip(bytes.chunks_mut(8)) {
        word.copy_from_slice(&mix(seed.wrapping_add(at)).to_le_bytes()[..word.len()]);
    }
    bytes
}

/// The id of the command at a log index.
pub(super) fn command_id(index: u64) -> CommandId {
    CommandId(uuid::Builder::from_random_bytes(random(What::CommandId, index)).into_uuid())
}

/// The Transaction UID of the claim that the command at a log index was granted, as the queue makes it.
pub(super) fn transaction_uid(index: u64) -> UidText {
    UidText::fitted(&format!("2.25.{}", command_id(index).0.as_u128()))
}

/// As many digits for every exam, so that the order of texts is that of numbers.
pub(super) fn study_uid(n: u64) -> UidText {
    let low = u128::from_le_bytes(random(What::Study, n)) >> 35;
    UidText::fitted(&format!("2.25.{}", 1_u128 << 120 | u128::from(place(n)) << 93 | low))
}

pub(super) fn key_id(n: u64) -> KeyId {
    let low = u128::from_le_bytes(random(What::KeyId, n)) >> BITS;
    KeyId((u128::from(place(n)) << (128 - BITS) | low).to_be_bytes())
}

pub(super) fn secret(n: u64) -> Secret {
    Secret(random(What::Secret, n))
}

pub(super) fn manifest(n: u64) -> [u8; 32] {
    random(What::Manifest, n)
}

pub(super) fn signature(n: u64) -> serde_bytes::ByteBuf {
    serde_bytes::ByteBuf::from(random::<64>(What::Signature, n))
}

pub(super) fn accession(n: u64) -> Line {
    Line::fitted(&format!("A{n:010}"))
}

/// The reader of an exam, or of another turn.
pub(super) fn reader(turn: u64) -> Name {
    Name::fitted(&format!("dr-{}", turn % READERS))
}

/// Sets what tells this request from those of other cohorts.
pub(super) fn identify(request: &mut Request, n: u64) {
    request.accession = accession(n);
    request.patient.id = Line::fitted(&format!("{:015}", n * 7));
    request.patient.name = Line::fitted(&format!("PATIENT{n:09}^GIVEN"));
}

pub(super) fn request(n: u64) -> anyhow::Result<Request> {
    let lot = usize::try_from(n)?;
    let mut request = Request {
        accession: Line::default(),
        patient: Patient {
            id: Line::default(),
            issuer: Line::fitted("1.2.250.1.213.1.4.8"),
            name: Line::default(),
            birth_date: Text8::fitted("19700101"),
            sex: Text8::fitted("F"),
        },
        modality: Text8::fitted(MODALITIES[lot % MODALITIES.len()]),
        description: Line::fitted("Head without contrast"),
        hospital: Line::fitted(&format!("Hospital {}", n % HOSPITALS)),
        physician: Line::fitted("Dr Requester"),
        priority: Priority::ALL[lot % Priority::ALL.len()],
        awaits_images: true,
    };
    identify(&mut request, n);
    Ok(request)
}
