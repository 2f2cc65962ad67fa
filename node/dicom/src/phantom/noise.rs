//! Noise like a scanner's: nearly Gaussian, and correlated between neighbours, as reconstruction
//! leaves it. White noise would compress worse than real images do.

/// SplitMix64 (Steele, Lea and Flood 2014): the same on every machine and for ever, which `rand`'s
/// generators do not promise.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Expected sum of four random bytes.
const FOUR_BYTES_MEAN: i32 = 510;
/// What makes the filtered noise 12 HU strong: four bytes have a variance of 21,845, the filter
/// multiplies it by 12, and 12 / sqrt(12 x 21,845) is 3 / 128.
const SCALE: (i32, u32) = (3, 7);
/// Range of a scanner, in HU.
const RANGE: (i32, i32) = (-1024, 3071);

pub(super) struct Noise {
    random: SplitMix,
    /// White noise of a row, one sample wider on either side.
    white: Vec<i32>,
    above: Vec<i32>,
}

impl Noise {
    pub(super) fn new(seed: u64, slice: u32, columns: usize) -> Self {
        let mut random = SplitMix(seed ^ u64::from(slice).wrapping_mul(0xD6E8_FEB8_6659_FD93));
        // Neighbouring slices begin far apart.
        random.0 = random.next();
        let mut noise = Self { random, white: vec![0; columns + 2], above: vec![0; columns] };
        noise.draw();
        let first: Vec<i32> = noise.smoothed().collect();
        noise.above.copy_from_slice(&first);
        noise
    }

    /// Adds noise to the pixels of `inside`; must be called row after row.
    pub(super) fn add_to(&mut self, row: &mut [i16], inside: std::ops::Range<usize>) {
        self.draw();
        for (x, pixel) in row.iter_mut().enumerate() {
            let smoothed = self.white[x] + 2 * self.white[x + 1] + self.white[x + 2];
            let noise = ((smoothed + self.above[x]) * SCALE.0) >> SCALE.1;
            self.above[x] = smoothed;
            if inside.contains(&x) {
                let value = (i32::from(*pixel) + noise).clamp(RANGE.0, RANGE.1);
                *pixel = i16::try_from(value).unwrap_or(i16::MAX);
            }
        }
    }

    fn smoothed(&self) -> impl Iterator<Item = i32> + '_ {
        self.white.windows(3).map(|three| three[0] + 2 * three[1] + three[2])
    }

    /// A new row of white noise, two samples of four bytes each from one draw.
    fn draw(&mut self) {
        const BYTES: u64 = 0x00FF_00FF_00FF_00FF;
        const LANES: u64 = 0x0000_FFFF_0000_FFFF;
        for pair in self.white.chunks_mut(2) {
            let bits = self.random.next();
            // Four lanes of 16 bits, then two of 32, each the sum of its bytes.
            let sums = (bits & BYTES) + ((bits >> 8) & BYTES);
            let sums = (sums & LANES) + ((sums >> 16) & LANES);
            for (sample, sum) in pair.iter_mut().zip([sums & 0xFFFF_FFFF, sums >> 32]) {
                *sample = i32::try_from(sum).unwrap_or(0) - FOUR_BYTES_MEAN;
            }
        }
    }
}
