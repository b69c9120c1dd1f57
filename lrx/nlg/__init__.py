"""The official scorers of generated text of the E2E NLG Challenge, without torch; ``lrx.nlg.scores`` has them all."""
