"""The BabyAI rooms: a bot, a scripted agent, the real rooms, and what a picture of one shows."""
