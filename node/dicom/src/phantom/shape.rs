//! The head: ellipsoids, painted over each other row by row.
//!
//! Lengths are in halves of the field of view: x to the patient's left, y to the back, z to the
//! head's top, the origin in the middle.

/// Air, in HU.
const AIR: i16 = -1000;
/// What scanners write outside the reconstruction circle.
const OUTSIDE: i16 = -1024;

struct Ellipsoid {
    centre: [f64; 3],
    half_axes: [f64; 3],
    hounsfield: i16,
}

const fn ellipsoid(centre: [f64; 3], half_axes: [f64; 3], hounsfield: i16) -> Ellipsoid {
    Ellipsoid { centre, half_axes, hounsfield }
}

/// From the outside in: each covers what is before it.
const HEAD: [Ellipsoid; 20] = [
    // Headrest, its hollow, scalp, skull, brain.
    ellipsoid([0.0, 0.10, 0.0], [0.84, 0.88, 9.0], 60),
    ellipsoid([0.0, 0.06, 0.0], [0.82, 0.86, 9.0], AIR),
    ellipsoid([0.0, -0.85, 0.0], [0.99, 0.95, 9.0], AIR),
    ellipsoid([0.0, 0.0, 0.0], [0.68, 0.84, 0.80], 40),
    ellipsoid([0.0, 0.0, 0.0], [0.65, 0.81, 0.77], 1150),
    ellipsoid([0.0, 0.0, 0.0], [0.60, 0.75, 0.71], 36),
    // White matter.
    ellipsoid([-0.28, 0.0, 0.12], [0.22, 0.52, 0.40], 28),
    ellipsoid([0.28, 0.0, 0.12], [0.22, 0.52, 0.40], 28),
    // Lateral ventricles, third, fourth.
    ellipsoid([-0.09, -0.05, 0.10], [0.05, 0.26, 0.16], 7),
    ellipsoid([0.09, -0.05, 0.10], [0.05, 0.26, 0.16], 7),
    ellipsoid([0.0, 0.02, -0.05], [0.02, 0.12, 0.10], 7),
    ellipsoid([0.0, 0.38, -0.35], [0.06, 0.05, 0.08], 7),
    // Pineal body, calcified; the falx.
    ellipsoid([0.0, 0.16, 0.02], [0.015, 0.02, 0.02], 140),
    ellipsoid([0.0, 0.0, 0.45], [0.008, 0.70, 0.25], 55),
    // Frontal and sphenoid sinus, mastoid cells, petrous bones.
    ellipsoid([0.0, -0.74, -0.25], [0.16, 0.05, 0.12], AIR),
    ellipsoid([0.0, -0.25, -0.58], [0.14, 0.14, 0.09], -990),
    ellipsoid([-0.42, 0.18, -0.52], [0.16, 0.09, 0.08], 1400),
    ellipsoid([0.42, 0.18, -0.52], [0.16, 0.09, 0.08], 1400),
    // The finding: a fresh haemorrhage and its oedema.
    ellipsoid([0.30, -0.14, 0.10], [0.17, 0.15, 0.16], 22),
    ellipsoid([0.30, -0.14, 0.10], [0.11, 0.09, 0.11], 71),
];

/// The section of the head at one height.
pub(super) struct Shape {
    /// Of each ellipsoid that is cut: centre, squared radius left by the height, half axes, density.
    cut: Vec<(f64, f64, f64, f64, f64, i16)>,
}

impl Shape {
    pub(super) fn at(z: f64) -> Self {
        let cut = HEAD.iter().filter_map(|ellipsoid| {
            let [x0, y0, z0] = ellipsoid.centre;
            let [a, b, c] = ellipsoid.half_axes;
            let left = 1.0 - ((z - z0) / c).powi(2);
            (left > 0.0).then_some((x0, y0, left, a, b, ellipsoid.hounsfield))
        });
        Self { cut: cut.collect() }
    }

    /// Fills row `y` of `rows` with densities in HU; returns the columns inside the reconstruction
    /// circle.
    pub(super) fn fill_row(&self, y: u16, rows: u16, row: &mut [i16]) -> std::ops::Range<usize> {
        let y = 2.0 * (f64::from(y) + 0.5) / f64::from(rows) - 1.0;
        row.fill(OUTSIDE);
        let inside = columns(0.0, (1.0 - y * y).max(0.0).sqrt(), row.len());
        row[inside.clone()].fill(AIR);
        for &(x0, y0, left, a, b, hounsfield) in &self.cut {
            let left = left - ((y - y0) / b).powi(2);
            if left > 0.0 {
                let painted = columns(x0, a * left.sqrt(), row.len());
                let (start, end) = (painted.start.max(inside.start), painted.end.min(inside.end));
                if start < end {
                    row[start..end].fill(hounsfield);
                }
            }
        }
        inside
    }
}

/// The columns whose middles lie within `half` of `x`.
fn columns(x: f64, half: f64, width: usize) -> std::ops::Range<usize> {
    let scale = width as f64 / 2.0;
    let at = |x: f64| ((x + 1.0) * scale - 0.5).ceil().clamp(0.0, width as f64);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=width just above")]
    let (start, end) = (at(x - half) as usize, at(x + half) as usize);
    start..end.max(start)
}
