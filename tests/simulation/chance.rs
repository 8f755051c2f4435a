//! Chance from a seed (splitmix64): the same seed draws the same lots.

#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds shall not draw alike.
        let mut chance = Self(seed.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(1));
        chance.draw();
        chance
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `n` - 1.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.draw() % n }
    }

    /// Both ends included.
    pub fn between(&mut self, least: i64, most: i64) -> i64 {
        least + i64::try_from(self.below(u64::try_from(most - least + 1).unwrap_or(1))).unwrap_or_default()
    }

    pub fn percent(&mut self, p: u64) -> bool {
        p > 0 && self.below(100) < p
    }

    /// In a thousand.
    pub fn mille(&mut self, p: u64) -> bool {
        p > 0 && self.below(1000) < p
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap_or_default()]
    }

    /// A source of its own, so that what is drawn here does not move what is drawn there.
    pub fn branch(&mut self) -> Self {
        Self::new(self.draw())
    }
}
