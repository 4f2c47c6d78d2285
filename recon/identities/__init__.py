"""Operations on identities: requests become batches, batches become transactions."""
