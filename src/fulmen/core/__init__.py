"""What all folders above share: trees, components, modes, batches, states, and the contracts of the verbs."""
