//! The entropy coder: range asymmetric numeral systems (Duda 2013), four states in turn over one
//! stream of 16-bit words, with static frequencies a context (Giesen 2014, "Interleaved entropy coders").
//!
//! States lie in 2^15 .. 2^31; frequencies of a context add up to 2^11, so that the decoder's tables of
//! the contexts in use fit a core's second-level cache.

use crate::DecodeError;
use crate::context::CONTEXTS;
use crate::token::TOKENS;

/// States in turn: enough that one's multiplication hides behind the others'.
pub(crate) const STATES: usize = 4;
const FREQUENCY_BITS: u32 = 11;
/// The sum of a context's frequencies.
const TOTAL: u32 = 1 << FREQUENCY_BITS;
/// The least state: where the encoder begins and the decoder must end.
const STATE_MIN: u32 = 1 << 15;
/// The frequencies of every token in every context.
pub(crate) type Frequencies = [[u16; TOKENS]; CONTEXTS];
/// How often each token came in each context: a context's tokens lie together.
pub(crate) type Counts = [u32; CONTEXTS * TOKENS];

/// Counts scaled to [`TOTAL`] in each context; what came at least once keeps at least 1.
pub(crate) fn frequencies(counts: &Counts) -> Frequencies {
    let mut all = [[0; TOKENS]; CONTEXTS];
    for (frequencies, counts) in all.iter_mut().zip(counts.chunks_exact(TOKENS)) {
        let sum: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        if sum == 0 {
            continue;
        }
        let mut left = i64::from(TOTAL);
        for (frequency, count) in frequencies.iter_mut().zip(counts).filter(|(_, count)| **count > 0) {
            let share = (u64::from(*count) * u64::from(TOTAL) + sum / 2) / sum;
            *frequency = u16::try_from(share.max(1)).unwrap_or(u16::MAX);
            left -= i64::from(*frequency);
        }
        settle(frequencies, left);
    }
    all
}

/// Gives what rounding left, or takes what it gave too much, where it costs least: at the greatest.
fn settle(frequencies: &mut [u16; TOKENS], mut left: i64) {
    while left != 0 {
        let Some(greatest) = frequencies.iter_mut().max() else { return };
        // Never below half: 64 tokens of 2048 leave a greatest of at least 32.
        let change = left.clamp(-i64::from(*greatest / 2), i64::from(u16::MAX));
        *greatest = u16::try_from(i64::from(*greatest) + change).unwrap_or(1);
        left -= change;
    }
}

/// What encoding a token in a context takes: division by a multiplication, exact for states under
/// 2^31 (Alverson 1991, as in Giesen's `ryg_rans`).
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    /// From this state on a word must go out first.
    limit: u32,
    reciprocal: u32,
    bias: u32,
    complement: u16,
    shift: u16,
}

impl Step {
    fn new(start: u32, frequency: u16) -> Self {
        let wide = u32::from(frequency);
        let limit = wide << (31 - FREQUENCY_BITS);
        let complement = u16::try_from(TOTAL - wide).unwrap_or(0);
        if frequency < 2 {
            return Self { limit, reciprocal: u32::MAX, bias: start + TOTAL - 1, complement, shift: 0 };
        }
        let bits = 32 - (wide - 1).leading_zeros();
        let reciprocal = (1_u64 << (bits + 31)).div_ceil(u64::from(wide));
        let shift = u16::try_from(bits - 1).unwrap_or(0);
        Self { limit, reciprocal: u32::try_from(reciprocal).unwrap_or(u32::MAX), bias: start, complement, shift }
    }
}

/// Encodes rows of `columns` symbols; a symbol is the context times [`TOKENS`] plus the token. Returns the
/// words in the order in which the decoder takes them, the states first.
#[inline(always)]
pub(crate) fn encode(symbols: &[u16], columns: usize, frequencies: &Frequencies) -> Vec<u16> {
    let steps = steps(frequencies);
    // Every symbol gives at most one word.
    let mut words = vec![0_u16; symbols.len() + 2 * STATES];
    let mut at = words.len();
    let mut states = [STATE_MIN; STATES];
    for row in symbols.rchunks(columns.max(1)) {
        let (fours, rest) = row.as_chunks::<STATES>();
        for (state, symbol) in states.iter_mut().zip(rest).rev() {
            put(state, &steps[usize::from(symbol & SYMBOL_MASK)], &mut words, &mut at);
        }
        let [mut a, mut b, mut c, mut d] = states;
        for four in fours.iter().rev() {
            put(&mut d, &steps[usize::from(four[3] & SYMBOL_MASK)], &mut words, &mut at);
            put(&mut c, &steps[usize::from(four[2] & SYMBOL_MASK)], &mut words, &mut at);
            put(&mut b, &steps[usize::from(four[1] & SYMBOL_MASK)], &mut words, &mut at);
            put(&mut a, &steps[usize::from(four[0] & SYMBOL_MASK)], &mut words, &mut at);
        }
        states = [a, b, c, d];
    }
    for state in states.iter().rev() {
        for word in [state >> 16, state & 0xFFFF] {
            at -= 1;
            words[at] = (word & 0xFFFF) as u16;
        }
    }
    words.drain(..at);
    words
}

/// Steps of all symbols, as many as a mask can reach.
const STEPS_LEN: usize = (CONTEXTS * TOKENS).next_power_of_two();
const SYMBOL_MASK: u16 = 0x0FFF;
const _: () = assert!(SYMBOL_MASK as usize + 1 == STEPS_LEN);

fn steps(frequencies: &Frequencies) -> Box<[Step; STEPS_LEN]> {
    let mut steps = Box::new([Step::default(); STEPS_LEN]);
    for (steps, frequencies) in steps.chunks_exact_mut(TOKENS).zip(frequencies) {
        let mut start = 0;
        for (step, frequency) in steps.iter_mut().zip(frequencies).filter(|(_, frequency)| **frequency > 0) {
            *step = Step::new(start, *frequency);
            start += u32::from(*frequency);
        }
    }
    steps
}

#[inline(always)]
fn put(state: &mut u32, step: &Step, words: &mut [u16], at: &mut usize) {
    // Written always and kept only when due: whether it is due is as good as random.
    if let Some(word) = words.get_mut(*at - 1) {
        *word = (*state & 0xFFFF) as u16;
    }
    let due = *state >= step.limit;
    *at -= usize::from(due);
    let x = *state >> (u32::from(due) * 16);
    let quotient = ((u64::from(x) * u64::from(step.reciprocal)) >> 32 >> step.shift) as u32;
    *state = x.wrapping_add(step.bias).wrapping_add(quotient.wrapping_mul(u32::from(step.complement)));
}

/// Takes the symbols of rows again.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// For each context and each value of a state's low bits: the token, its frequency from bit 8, and from
    /// bit 20 how far the value lies behind the token's first.
    slots: Vec<u32>,
    words: Vec<u16>,
    at: usize,
    states: [u32; STATES],
}

impl Decoder {
    /// # Errors
    /// When the frequencies of a context do not add up, or the states are not there or not states.
    pub(crate) fn new(frequencies: &Frequencies, bytes: &[u8]) -> Result<Self, DecodeError> {
        let (words, rest) = bytes.as_chunks::<2>();
        if !rest.is_empty() || words.len() < 2 * STATES {
            return Err(DecodeError::Words);
        }
        let words: Vec<u16> = words.iter().map(|word| u16::from_le_bytes(*word)).collect();
        let mut states = [0; STATES];
        for (state, halves) in states.iter_mut().zip(words.chunks_exact(2)) {
            *state = u32::from(halves[0]) | u32::from(halves[1]) << 16;
            if !(STATE_MIN..1 << 31).contains(state) {
                return Err(DecodeError::Words);
            }
        }
        Ok(Self { slots: slots(frequencies)?, words, at: 2 * STATES, states })
    }

    /// The tokens of a row in these contexts.
    #[inline(always)]
    pub(crate) fn row(&mut self, contexts: &[u16], tokens: &mut [u8]) {
        let Self { slots, words, at, states } = self;
        let (fours, rest) = contexts.as_chunks::<STATES>();
        let (out, out_rest) = tokens.as_chunks_mut::<STATES>();
        let Ok(slots) = <&[u32; SLOTS_LEN]>::try_from(slots.as_slice()) else { return };
        let [mut a, mut b, mut c, mut d] = *states;
        let mut next = *at;
        for (contexts, out) in fours.iter().zip(out) {
            out[0] = take(&mut a, contexts[0], slots, words, &mut next);
            out[1] = take(&mut b, contexts[1], slots, words, &mut next);
            out[2] = take(&mut c, contexts[2], slots, words, &mut next);
            out[3] = take(&mut d, contexts[3], slots, words, &mut next);
        }
        *states = [a, b, c, d];
        for ((state, context), out) in states.iter_mut().zip(rest).zip(out_rest) {
            *out = take(state, *context, slots, words, &mut next);
        }
        *at = next;
    }

    /// That everything was taken, and the states are where the encoder began.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        let ended = self.at == self.words.len() && self.states == [STATE_MIN; STATES];
        if ended { Ok(()) } else { Err(DecodeError::Words) }
    }
}

/// Room for every context that a mask lets through.
const SLOTS_LEN: usize = CONTEXTS.next_power_of_two() << FREQUENCY_BITS;

fn slots(frequencies: &Frequencies) -> Result<Vec<u32>, DecodeError> {
    let mut slots = vec![0; SLOTS_LEN];
    for (slots, frequencies) in slots.chunks_exact_mut(1 << FREQUENCY_BITS).zip(frequencies) {
        let sum: u32 = frequencies.iter().map(|frequency| u32::from(*frequency)).sum();
        if sum != 0 && sum != TOTAL {
            return Err(DecodeError::Frequencies);
        }
        let mut rest = slots;
        for (token, frequency) in (0_u32..).zip(frequencies) {
            let (own, behind) = rest.split_at_mut(usize::from(*frequency).min(rest.len()));
            for (offset, slot) in (0_u32..).zip(own) {
                *slot = token | u32::from(*frequency) << 8 | offset << 20;
            }
            rest = behind;
        }
    }
    Ok(slots)
}

#[inline(always)]
fn take(state: &mut u32, context: u16, slots: &[u32; SLOTS_LEN], words: &[u16], at: &mut usize) -> u8 {
    let place = (usize::from(context) << FREQUENCY_BITS | (*state & (TOTAL - 1)) as usize) & (SLOTS_LEN - 1);
    let slot = slots[place];
    let x = ((slot >> 8) & 0xFFF).wrapping_mul(*state >> FREQUENCY_BITS).wrapping_add(slot >> 20);
    // Behind the end come zeros; `finish` tells.
    let word = u32::from(words.get(*at).copied().unwrap_or(0));
    let due = x < STATE_MIN;
    *at += usize::from(due);
    *state = if due { x << 16 | word } else { x };
    (slot & 0xFF) as u8
}
