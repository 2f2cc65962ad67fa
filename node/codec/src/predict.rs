//! The predictor: the median of the left neighbour, the upper one, and the plane through the three
//! around (LOCO-I's median edge detector, Weinberger, Seroussi and Sapiro 2000, as in JPEG-LS).
//!
//! Arithmetic wraps at 16 bits, so that every residual is one sample wide whatever the samples are.
//! Written over slices without early exits, for the compiler to vectorise.

/// Residuals of a row below `above`.
#[inline(always)]
pub(crate) fn residuals(row: &[i16], above: &[i16], out: &mut [i16]) {
    let (Some((&first, _)), Some((&first_above, _))) = (row.split_first(), above.split_first()) else { return };
    let (Some((out_first, out)), Some(here)) = (out.split_first_mut(), row.get(1..)) else { return };
    *out_first = first.wrapping_sub(first_above);
    for ((((out, &here), &left), &up), &corner) in out.iter_mut().zip(here).zip(row).zip(&above[1..]).zip(above) {
        let (low, high) = (left.min(up), left.max(up));
        let plane = left.wrapping_add(up).wrapping_sub(corner);
        // Between low and high the plane can't have wrapped.
        let inner = if corner <= low { high } else { plane };
        let predicted = if corner >= high { low } else { inner };
        *out = here.wrapping_sub(predicted);
    }
}

/// Residuals of a first row: what is added to the left neighbour.
#[inline(always)]
pub(crate) fn first_residuals(row: &[i16], out: &mut [i16]) {
    let mut left = 0_i16;
    for (out, &here) in out.iter_mut().zip(row) {
        *out = here.wrapping_sub(left);
        left = here;
    }
}

/// Undoes [`residuals`].
#[inline(always)]
pub(crate) fn restore(residuals: &[i16], above: &[i16], row: &mut [i16]) {
    let (Some((row_first, row)), Some((&first, residuals))) = (row.split_first_mut(), residuals.split_first()) else {
        return;
    };
    let Some(&first_above) = above.first() else { return };
    let mut left = first.wrapping_add(first_above);
    *row_first = left;
    for (((out, &residual), &up), &corner) in row.iter_mut().zip(residuals).zip(&above[1..]).zip(above) {
        left = step(left, up, corner, residual);
        *out = left;
    }
}

/// Undoes [`residuals`] for two rows, the lower one sample behind the upper. Each sample waits for the one
/// before it, so that two rows at once take little longer than one. All five are as long as one another.
#[inline(always)]
pub(crate) fn restore_pair(residuals: [&[i16]; 2], above: &[i16], upper: &mut [i16], lower: &mut [i16]) {
    let n = above.len();
    let ([first, second], upper, lower) = (residuals.map(|row| &row[..n]), &mut upper[..n], &mut lower[..n]);
    if n < 2 {
        restore(first, above, upper);
        return restore(second, upper, lower);
    }
    upper[0] = first[0].wrapping_add(above[0]);
    upper[1] = step(upper[0], above[1], above[0], first[1]);
    lower[0] = second[0].wrapping_add(upper[0]);
    let (mut corner, mut left, mut lower_left) = (upper[0], upper[1], lower[0]);
    for x in 2..n {
        let here = step(left, above[x], above[x - 1], first[x]);
        lower_left = step(lower_left, left, corner, second[x - 1]);
        upper[x] = here;
        lower[x - 1] = lower_left;
        (corner, left) = (left, here);
    }
    lower[n - 1] = step(lower_left, left, corner, second[n - 1]);
}

/// A sample: the same median as in [`residuals`], with the fewest steps from `left` to the result.
#[inline(always)]
fn step(left: i16, up: i16, corner: i16, residual: i16) -> i16 {
    let slope = i32::from(up) - i32::from(corner);
    let (up, left) = (i32::from(up), i32::from(left));
    let predicted = up.min(left + slope.max(0)).max(left + slope.min(0));
    // A median of samples and what lies between them: 16 bits.
    ((predicted & 0xFFFF) as u16).cast_signed().wrapping_add(residual)
}

/// Undoes [`first_residuals`].
#[inline(always)]
pub(crate) fn first_restore(residuals: &[i16], row: &mut [i16]) {
    let mut left = 0_i16;
    for (out, &residual) in row.iter_mut().zip(residuals) {
        left = left.wrapping_add(residual);
        *out = left;
    }
}
