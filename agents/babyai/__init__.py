"""BabyAI: expert bot, scripted agent, fast real rooms, and recognition of tiles in frames."""
