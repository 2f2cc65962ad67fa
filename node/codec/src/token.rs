//! Residuals as tokens: a small alphabet for the entropy coder, and the bits that it need not model.
//!
//! A residual is folded to an unsigned number (0, -1, 1, -2, … become 0, 1, 2, 3, …). Numbers below 16
//! are their own token. A greater one is a token of its highest bit and the three bits below, and the
//! remaining bits as they are: those of real images are noise (JPEG XL, ISO/IEC 18181-1 annex C, codes
//! its integers alike).

/// Tokens: 16 direct ones, and eight for each of the twelve powers of two from 16 to 32768; then a power
/// of two.
pub(crate) const TOKENS: usize = 128;
/// The greatest token of all.
pub(crate) const TOKEN_MAX: u8 = 111;

/// Numbers below it are their own token.
pub(crate) const DIRECT: u16 = 16;
/// Most bits that a token leaves out.
pub(crate) const LEFT_OUT_MAX: u32 = 12;

/// Folds the sign into the lowest bit.
#[inline(always)]
pub(crate) fn fold(residual: i16) -> u16 {
    ((residual << 1) ^ (residual >> 15)).cast_unsigned()
}

/// Undoes [`fold`].
#[inline(always)]
pub(crate) fn unfold(folded: u16) -> i16 {
    ((folded >> 1) ^ (folded & 1).wrapping_neg()).cast_signed()
}

/// The token of a folded residual, and how many low bits it leaves out. Without a branch: whether a
/// residual is above 16 is as good as random in a noisy image.
#[inline(always)]
pub(crate) fn of(folded: u16) -> (u16, u32) {
    let left_out = LEFT_OUT_MAX.saturating_sub(folded.leading_zeros());
    let token = ((8 * left_out) & 0x7F) as u16 + (folded >> left_out);
    (token, left_out)
}

/// What a token stands for: its number without the bits left out, and how many these are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meaning {
    pub(crate) base: u16,
    pub(crate) left_out: u16,
}

/// The meanings of all tokens, and zero for what is none.
pub(crate) const MEANINGS: [Meaning; TOKENS] = meanings();

const fn meanings() -> [Meaning; TOKENS] {
    let mut meanings = [Meaning { base: 0, left_out: 0 }; TOKENS];
    let mut token: u16 = 0;
    while token <= TOKEN_MAX as u16 {
        let left_out = (token / 8).saturating_sub(1);
        meanings[token as usize] = Meaning { base: (token - 8 * left_out) << left_out, left_out };
        token += 1;
    }
    meanings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_residual_is_its_token_and_the_bits_left_out() {
        for residual in i16::MIN..=i16::MAX {
            let folded = fold(residual);
            let (token, left_out) = of(folded);
            let meaning = MEANINGS[usize::from(token)];
            assert!(token <= u16::from(TOKEN_MAX) && left_out <= LEFT_OUT_MAX);
            assert_eq!(u32::from(meaning.left_out), left_out);
            assert_eq!(meaning.base | (folded & ((1 << left_out) - 1)), folded);
            assert_eq!(unfold(folded), residual);
        }
    }
}
