//! On which sites a thing's copies lie: weighted rendezvous hashing over distinct zones.
//!
//! Every node computes this and all must agree to the bit, across compilers and processors. The weighted
//! form of rendezvous hashing (Thaler and Ravishankar 1998; weights by -w / ln(u), Schindelhauer and
//! Schomaker 2005) needs a logarithm, and `f64::ln` comes from the platform's libm, whose last digit
//! differs between machines. So the logarithm is taken in fixed point, in base two (a constant factor
//! changes no order), and scores are compared by cross-multiplication: no division, no float.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use blake3::Hash;

/// Binary digits of the logarithm's fraction. 48 tell scores apart that differ by 10^-14.
const FRACTION_BITS: u32 = 48;

/// Weights count in units of 2^-16, up to 2^24: 40 bits, so that a product with a 54-bit logarithm
/// fits 128 bits with room.
const WEIGHT_UNIT: f64 = 65_536.0;
const WEIGHT_MAX: f64 = 16_777_216.0;

/// What the hash is separated by from other uses of BLAKE3 on the same key. Persisted in effect: a
/// change moves every copy.
const CONTEXT: &str = "maillage placement 1";

/// A site that may hold copies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SiteWeight<'a> {
    /// The site's id.
    pub id: u64,
    /// What fails together with it: copies avoid each other's zones.
    pub zone: &'a str,
    /// The share it takes, relative to others'. Zero, negative or not a number: none.
    pub weight: f64,
}

/// The sites that shall hold `copies` copies of `key`, best first: the best of each zone, by score, and
/// only when there are fewer zones than copies, the best of what remains. Fewer than `copies` when there
/// are fewer sites.
///
/// When a site leaves, the others keep what they hold, and one more site takes its part.
pub fn choose(key: &Hash, sites: &[SiteWeight<'_>], copies: usize) -> Vec<u64> {
    let mut seen = BTreeSet::new();
    let mut ranked: Vec<(Score, &SiteWeight<'_>)> = sites
        .iter()
        .filter(|site| seen.insert(site.id))
        .filter_map(|site| Score::of(key, site).map(|score| (score, site)))
        .collect();
    ranked.sort_by(|(a, site_a), (b, site_b)| b.compare(a).then(site_a.id.cmp(&site_b.id)));
    let mut zones = BTreeSet::new();
    let (first, rest): (Vec<_>, Vec<_>) = ranked.into_iter().partition(|(_, site)| zones.insert(site.zone));
    first.into_iter().chain(rest).take(copies).map(|(_, site)| site.id).collect()
}

/// `weight / -log2(u)`, kept as its two integers.
#[derive(Debug, Clone, Copy)]
struct Score {
    weight: u64,
    negative_log: u64,
}

impl Score {
    fn of(key: &Hash, site: &SiteWeight<'_>) -> Option<Self> {
        let weight = fixed_weight(site.weight)?;
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(key.as_bytes()).update(&site.id.to_be_bytes());
        let digest = hasher.finalize();
        let (head, _) = digest.as_bytes().split_first_chunk::<8>()?;
        Some(Self { weight, negative_log: negative_log2(u64::from_be_bytes(*head)) })
    }

    fn compare(&self, other: &Self) -> Ordering {
        let ours = u128::from(self.weight) * u128::from(other.negative_log);
        ours.cmp(&(u128::from(other.weight) * u128::from(self.negative_log)))
    }
}

/// The weight in units of 2^-16; `None` when it takes nothing. Multiplication by a power of two and
/// rounding are exact in IEEE 754, so this is alike everywhere.
fn fixed_weight(weight: f64) -> Option<u64> {
    if weight.is_nan() || weight <= 0.0 {
        return None;
    }
    let units = (weight.min(WEIGHT_MAX) * WEIGHT_UNIT).round();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 2^40 by the lines above"
    )]
    let units = units as u64;
    (units > 0).then_some(units)
}

/// `-log2((draw + 1) / 2^64)` with [`FRACTION_BITS`] binary digits, at least one unit.
fn negative_log2(draw: u64) -> u64 {
    let Some(value) = draw.checked_add(1) else { return 1 };
    let whole = value.ilog2();
    // The mantissa in [1, 2), with 63 binary digits; squaring it yields the logarithm digit by digit.
    let mut mantissa = u128::from(value) << (63 - whole);
    let mut log = u64::from(whole);
    for _ in 0..FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> 63;
        log <<= 1;
        if mantissa >> 64 != 0 {
            mantissa >>= 1;
            log |= 1;
        }
    }
    ((64 << FRACTION_BITS) - log).max(1)
}

#[cfg(test)]
mod tests;
