//! Rows of samples, coded: the loops over a piece.

use crate::DecodeError;
use crate::bits::{BitReader, BitWriter};
use crate::context::{self, CONTEXTS};
use crate::format::Rows;
use crate::predict;
use crate::rans::{self, Decoder, Frequencies};
use crate::samples::{Layout, Planes};
use crate::token::{self, DIRECT, LEFT_OUT_MAX, MEANINGS, TOKENS};

/// A piece's rows, coded.
#[derive(Debug)]
pub(crate) struct CodedRows {
    pub(crate) frequencies: Box<Frequencies>,
    /// The bits that tokens leave out.
    pub(crate) bits: Vec<u8>,
    pub(crate) words: Vec<u16>,
}

/// What is remembered of a component's row above.
#[derive(Debug)]
struct Above {
    numbers: Vec<i16>,
    magnitudes: Vec<i16>,
}

impl Above {
    fn of(layout: &Layout) -> Vec<Self> {
        let above = || Self { numbers: vec![0; layout.columns], magnitudes: context::quiet(layout.columns) };
        (0..layout.components).map(|_| above()).collect()
    }
}

/// Codes `body`, which is whole rows.
#[inline(always)]
pub(crate) fn encode(body: &[u8], layout: &Layout) -> CodedRows {
    let columns = layout.columns;
    let samples = body.len() / layout.width.bytes();
    let mut symbols = vec![0; samples];
    let mut rest = &mut symbols[..];
    let mut bits = BitWriter::new(2 * samples);
    let mut planes = Planes::new(layout);
    let mut above = Above::of(layout);
    let mut residuals = vec![0; columns];
    let mut contexts = vec![0; columns];
    for (n, row) in body.chunks_exact(layout.row_len()).enumerate() {
        planes.load(row, layout);
        for (numbers, above) in planes.rows.iter_mut().zip(&mut above) {
            if n == 0 {
                predict::first_residuals(numbers, &mut residuals);
            } else {
                predict::residuals(numbers, &above.numbers, &mut residuals);
            }
            context::contexts(&above.magnitudes, &mut contexts);
            context::magnitudes(&residuals, &mut above.magnitudes);
            let (row, behind) = rest.split_at_mut(columns);
            put_symbols(&residuals, &contexts, row, &mut bits);
            rest = behind;
            std::mem::swap(numbers, &mut above.numbers);
        }
    }
    let frequencies = Box::new(rans::frequencies(&count(&symbols)));
    let words = rans::encode(&symbols, columns, &frequencies);
    CodedRows { frequencies, bits: bits.finish(), words }
}

#[inline(always)]
fn put_symbols(residuals: &[i16], contexts: &[u16], symbols: &mut [u16], bits: &mut BitWriter) {
    let segments = residuals.chunks(SEGMENT).zip(contexts.chunks(SEGMENT)).zip(symbols.chunks_mut(SEGMENT));
    for ((residuals, contexts), symbols) in segments {
        let mut all = 0;
        for (out, residual) in symbols.iter_mut().zip(residuals) {
            *out = token::fold(*residual);
            all |= *out;
        }
        if all >= DIRECT {
            for symbols in symbols.chunks_mut(TOKENS_AT_ONCE) {
                for out in symbols {
                    let folded = *out;
                    let (token, left_out) = token::of(folded);
                    bits.put(folded & ((1 << left_out) - 1), left_out);
                    *out = token;
                }
                bits.flush();
            }
        }
        for (out, context) in symbols.iter_mut().zip(contexts) {
            *out |= *context << TOKENS.trailing_zeros();
        }
    }
}

/// Samples that are looked at together for whether any leaves out bits: most of an image leaves out none,
/// and the compiler then makes a vector of them.
const SEGMENT: usize = 32;

/// Counts in two tables in turn: a run of one symbol would wait for each increment to be stored.
#[inline(always)]
fn count(symbols: &[u16]) -> Box<rans::Counts> {
    let mut even = Box::new([0_u32; CONTEXTS * TOKENS]);
    let mut odd = even.clone();
    let (pairs, rest) = symbols.as_chunks::<2>();
    for [first, second] in pairs {
        even[usize::from(*first)] += 1;
        odd[usize::from(*second)] += 1;
    }
    for symbol in rest {
        even[usize::from(*symbol)] += 1;
    }
    for (even, odd) in even.iter_mut().zip(odd.iter()) {
        *even += odd;
    }
    even
}

/// Appends the bytes of all rows to `raw`.
#[inline(always)]
pub(crate) fn decode(rows: &Rows<'_>, words: &[u8], raw: &mut Vec<u8>) -> Result<(), DecodeError> {
    let layout = &rows.layout;
    let mut decoder = Decoder::new(&rows.frequencies, words)?;
    let mut bits = BitReader::new(rows.bits);
    let mut planes = [Planes::new(layout), Planes::new(layout)];
    let mut residuals = [Planes::new(layout), Planes::new(layout)];
    let mut above = Above::of(layout);
    let mut row = Row { tokens: vec![0; layout.columns], contexts: vec![0; layout.columns] };
    let mut in_range = true;
    for n in (0..rows.rows).step_by(2) {
        let is_pair = n + 1 < rows.rows;
        for residuals in residuals.iter_mut().take(1 + usize::from(is_pair)) {
            for (residuals, above) in residuals.rows.iter_mut().zip(&mut above) {
                row.take(&mut decoder, &mut bits, &mut above.magnitudes, residuals);
            }
        }
        let [upper, lower] = &mut planes;
        for (component, above) in above.iter_mut().enumerate() {
            let [first, second] = [0, 1].map(|n| &residuals[n].rows[component][..]);
            let (upper, lower) = (&mut upper.rows[component], &mut lower.rows[component]);
            match (n, is_pair) {
                (0, _) => {
                    predict::first_restore(first, upper);
                    predict::restore(second, upper, lower);
                }
                (_, true) => predict::restore_pair([first, second], &above.numbers, upper, lower),
                (_, false) => predict::restore(first, &above.numbers, upper),
            }
            above.numbers.copy_from_slice(lower);
        }
        for planes in planes.iter_mut().take(1 + usize::from(is_pair)) {
            in_range &= planes.store(layout, raw);
        }
    }
    decoder.finish()?;
    bits.finish()?;
    if in_range { Ok(()) } else { Err(DecodeError::Range) }
}

/// Room for a row on its way from words to residuals.
#[derive(Debug)]
struct Row {
    tokens: Vec<u8>,
    contexts: Vec<u16>,
}

impl Row {
    /// The residuals of the row below `magnitudes`, which become its own.
    #[inline(always)]
    fn take(&mut self, decoder: &mut Decoder, bits: &mut BitReader, magnitudes: &mut [i16], residuals: &mut [i16]) {
        context::contexts(magnitudes, &mut self.contexts);
        decoder.row(&self.contexts, &mut self.tokens);
        for (residuals, tokens) in residuals.chunks_mut(SEGMENT).zip(self.tokens.chunks(SEGMENT)) {
            take_residuals(tokens, bits, residuals);
        }
        context::magnitudes(residuals, magnitudes);
    }
}

#[inline(always)]
fn take_residuals(tokens: &[u8], bits: &mut BitReader, residuals: &mut [i16]) {
    let mut all = 0;
    for token in tokens {
        all |= token;
    }
    if u16::from(all) < DIRECT {
        for (residual, token) in residuals.iter_mut().zip(tokens) {
            *residual = token::unfold(u16::from(*token));
        }
        return;
    }
    for (residuals, tokens) in residuals.chunks_mut(TOKENS_AT_ONCE).zip(tokens.chunks(TOKENS_AT_ONCE)) {
        bits.refill();
        for (residual, token) in residuals.iter_mut().zip(tokens) {
            let meaning = MEANINGS[usize::from(*token) & (TOKENS - 1)];
            *residual = token::unfold(meaning.base | bits.take(u32::from(meaning.left_out)));
        }
    }
}

/// The bits that so many tokens leave out are written, and made ready, together: at most 56.
const TOKENS_AT_ONCE: usize = 4;
const _: () = assert!(TOKENS_AT_ONCE * (LEFT_OUT_MAX as usize) <= 56);
