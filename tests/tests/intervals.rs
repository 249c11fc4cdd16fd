//! An interval does what its commits do one by one: the fuzz target of `godwit_tests::fuzz::intervals` on random histories, which
//! shrink.

use godwit_tests::fuzz::intervals::intervals;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn an_interval_does_what_its_commits_do(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        intervals(&bytes);
    }
}
