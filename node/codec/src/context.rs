//! Contexts: how noisy the image was around a sample, by the residuals of the row above.
//!
//! Only that row is asked, not the left neighbour: a row's contexts are then known before its first
//! sample is decoded, which keeps the entropy decoder free of waiting (the left neighbour's residual
//! too would save 2 % of a CT).

/// Contexts.
pub(crate) const CONTEXTS: usize = 18;

/// A context counts how many of these the activity exceeds: about two an octave.
const STEPS: [i16; CONTEXTS - 1] = [0, 1, 2, 4, 6, 10, 15, 22, 32, 46, 66, 94, 140, 220, 400, 800, 2000];

/// Magnitudes are cut here, so that four of them add up in 16 bits.
const MAGNITUDE_MAX: u16 = 4095;

/// A row of magnitudes, with a zero on either side.
pub(crate) fn quiet(columns: usize) -> Vec<i16> {
    vec![0; columns + 2]
}

/// The magnitudes of a row's residuals, into a row made by [`quiet`].
#[inline(always)]
pub(crate) fn magnitudes(residuals: &[i16], out: &mut [i16]) {
    for (out, residual) in out.iter_mut().skip(1).zip(residuals) {
        *out = residual.unsigned_abs().min(MAGNITUDE_MAX).cast_signed();
    }
}

/// The contexts of the row below these magnitudes.
#[inline(always)]
pub(crate) fn contexts(magnitudes: &[i16], out: &mut [u16]) {
    let (Some(middle), Some(right)) = (magnitudes.get(1..), magnitudes.get(2..)) else { return };
    for (((out, &left), &middle), &right) in out.iter_mut().zip(magnitudes).zip(middle).zip(right) {
        let activity = left + 2 * middle + right;
        let mut context = 0;
        for step in STEPS {
            context += u16::from(activity > step);
        }
        *out = context;
    }
}
